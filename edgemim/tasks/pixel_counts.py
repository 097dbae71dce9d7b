"""Intersection over union and pixel accuracy from the confusion of a segmentation model, counted pixel by pixel."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from edgemim.edge.segmentation import IGNORE
from edgemim.errors import UserError


@dataclass
class PixelCounts:
    """Counts of pixels; `confusion[i, j]` are those of class i that were named j. Pixels of 255 do not count."""

    labels: tuple[str, ...]
    confusion: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        self.confusion = np.zeros((len(self.labels),) * 2, np.int64)

    def add(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Count one image: uint8 [h, w] twice."""
        known, classes = truth != IGNORE, len(self.labels)
        pairs = truth[known].astype(np.int64) * classes + predicted[known]
        self.confusion += np.bincount(pairs, minlength=classes**2).reshape(classes, classes)

    def report(self, images: int, skipped: list[tuple[str, str]] | None = None) -> SegmentationReport:
        """The figures. Raises UserError if no pixel was counted."""
        truth, named = self.confusion.sum(1), self.confusion.sum(0)
        hits = np.diagonal(self.confusion)
        if not truth.sum():
            raise UserError("no pixel of the held-out masks belongs to a class; there is nothing to measure on")
        union = truth + named - hits
        iou = {label: _percent(h, u) for label, h, u in zip(self.labels, hits, union, strict=True)}
        accuracy = {label: _percent(h, t) for label, h, t in zip(self.labels, hits, truth, strict=True)}
        known = [value for value in iou.values() if value is not None]
        return SegmentationReport(
            miou=float(np.mean(known)),
            pixel_accuracy=100 * float(hits.sum() / truth.sum()),
            mean_accuracy=float(np.mean([value for value in accuracy.values() if value is not None])),
            images=images,
            iou=iou,
            accuracy=accuracy,
            share={label: 100 * float(t / truth.sum()) for label, t in zip(self.labels, truth, strict=True)},
            confusion=self.confusion,
            skipped=skipped or [],
        )


@dataclass(frozen=True)
class SegmentationReport:
    """Figures in percent.

    Attributes:
        miou: mean over the classes of intersection over union; a class that neither stands in the masks nor was named
            is left out of the mean, as mmsegmentation does.
        pixel_accuracy: share of all pixels named rightly.
        mean_accuracy: mean over the classes in the masks of the share of their pixels named rightly.
        images: number of images.
        iou: by class; None where it is left out.
        accuracy: by class; None where the masks do not hold it.
        share: by class, part of all pixels.
        confusion: pixels of class i named j.
        skipped: images that could not be read, with the reason.
    """

    miou: float
    pixel_accuracy: float
    mean_accuracy: float
    images: int
    iou: dict[str, float | None]
    accuracy: dict[str, float | None]
    share: dict[str, float]
    confusion: np.ndarray
    skipped: list[tuple[str, str]]

    def as_dict(self) -> dict[str, object]:
        """Plain values for run.json."""
        return {
            "miou": self.miou,
            "pixel_accuracy": self.pixel_accuracy,
            "mean_accuracy": self.mean_accuracy,
            "images": self.images,
            "per_class": {
                label: {"iou": self.iou[label], "accuracy": self.accuracy[label], "share": self.share[label]}
                for label in self.iou
            },
            "skipped": [list(pair) for pair in self.skipped],
        }


def _percent(part: int, whole: int) -> float | None:
    return 100 * float(part / whole) if whole else None
