"""Top-1, top-5 and the confusion matrix of a classifier, counted by torchmetrics."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

from edgemim.data.loader import Batch
from edgemim.errors import UserError
from edgemim.tasks.classification import ClassificationTask


@dataclass(frozen=True)
class AccuracyReport:
    """Figures in percent; `confusion[i, j]` counts images of class i named j.

    `top5` is None for five classes or fewer, of which it would always be 100.
    """

    top1: float
    top5: float | None
    images: int
    per_class: dict[str, float]
    confusion: np.ndarray
    skipped: list[tuple[str, str]] = field(default_factory=list)

    @property
    def tops(self) -> dict[str, float]:
        """top1, and top5 where it says something."""
        return {"top1": self.top1} | ({} if self.top5 is None else {"top5": self.top5})

    def as_dict(self) -> dict[str, object]:
        """Plain values for run.json."""
        return {
            **self.tops,
            "images": self.images,
            "per_class": self.per_class,
            "skipped": [list(pair) for pair in self.skipped],
        }


@torch.no_grad()
def evaluate_classifier(task: ClassificationTask, batches: Iterable[Batch], device: torch.device) -> AccuracyReport:
    """Measure a task on labelled images. Raises UserError if there is none, or the logits are not finite."""
    classes = len(task.labels)
    # One process measures while the others wait: metrics that would ask them for their counts would wait for ever.
    options: dict[str, Any] = {"num_classes": classes, "sync_on_compute": False}
    top1 = MulticlassAccuracy(average="micro", **options)
    top5 = MulticlassAccuracy(top_k=5, average="micro", **options) if classes > 5 else None
    confusion = MulticlassConfusionMatrix(**options)
    metrics = [top1, confusion, *([] if top5 is None else [top5])]
    images, skipped = 0, []
    task.eval()
    for batch in batches:
        skipped += batch.skipped
        if not len(batch.images):
            continue
        logits = task.predict(batch.images.to(device)).cpu()
        if not torch.isfinite(logits).all():
            raise UserError("the model's outputs are not finite: it diverged, or its weights are damaged")
        for metric in metrics:
            metric.update(logits, batch.labels)
        images += len(batch.images)
    if not images:
        raise UserError("no image could be read to evaluate on; run `edgemim data check` on the folder")
    matrix = confusion.compute().numpy()
    counts = matrix.sum(1)
    per_class = {label: 100 * float(matrix[i, i] / counts[i]) for i, label in enumerate(task.labels) if counts[i] > 0}
    fifth = None if top5 is None else 100 * float(top5.compute())
    return AccuracyReport(100 * float(top1.compute()), fifth, images, per_class, matrix, skipped)
