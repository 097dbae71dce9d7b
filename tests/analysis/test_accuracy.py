"""Accuracy and confusion against an independent count."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tiny_training import TinyBatch, keys_of
from torch import Tensor

from edgemim.analysis.accuracy import evaluate_classifier
from edgemim.edge.images import Preprocessing
from edgemim.errors import UserError
from edgemim.tasks.classification import ClassificationTask

CPU = torch.device("cpu")


class Scripted(torch.nn.Module):
    """Answers with prepared logits, in order."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits, self.place = logits, 0

    def forward(self, x: Tensor) -> Tensor:
        assert not self.training
        self.place += len(x)
        return self.logits[self.place - len(x) : self.place]


def task_of(logits: Tensor) -> ClassificationTask:
    labels = tuple(f"class {i}" for i in range(logits.shape[1]))
    task = ClassificationTask(Scripted(logits), labels, Preprocessing(image_size=8), None, architecture={})
    return task.train()


def batches_of(labels: Tensor, size: int, skipped: int = 0) -> Iterator[TinyBatch]:
    for part in labels.split(size):
        images = torch.zeros(len(part), 3, 8, 8, dtype=torch.uint8)
        faults = [(f"bad{i}.jpg", "cut short") for i in range(skipped)]
        yield TinyBatch(images, part, keys_of(len(part)), faults)
        skipped = 0


@pytest.mark.parametrize("classes", [2, 5, 6, 9])
def test_counts_agree_with_sorting_each_row(classes: int) -> None:
    generator = torch.Generator().manual_seed(classes)
    labels = torch.randint(0, classes, (101,), generator=generator)
    logits = torch.randn(101, classes, generator=generator) + 1.5 * torch.nn.functional.one_hot(labels, classes)
    report = evaluate_classifier(task_of(logits), batches_of(labels, 16), CPU)  # pyright: ignore
    ranking = np.argsort(-logits.numpy(), axis=1)
    truth = labels.numpy()
    assert report.images == 101
    assert report.top1 == pytest.approx(100 * np.mean(ranking[:, 0] == truth), abs=1e-4)
    if classes > 5:
        assert report.top5 == pytest.approx(100 * np.mean((ranking[:, :5] == truth[:, None]).any(1)), abs=1e-4)
    else:  # all of the classes
        assert report.top5 is None
    assert report.tops.keys() == report.as_dict().keys() & {"top1", "top5"}
    assert ("top5" in report.tops) == (classes > 5)
    confusion = np.zeros((classes, classes), int)
    for true, named in zip(truth, ranking[:, 0], strict=True):
        confusion[true, named] += 1
    assert np.array_equal(report.confusion, confusion)
    for i in range(classes):
        expected = 100 * confusion[i, i] / confusion[i].sum()
        assert report.per_class[f"class {i}"] == pytest.approx(expected)


def test_a_class_without_images_has_no_accuracy() -> None:
    logits = torch.eye(4)[:3]
    report = evaluate_classifier(task_of(logits), batches_of(torch.tensor([0, 1, 1]), 2), CPU)  # pyright: ignore
    assert report.per_class == {"class 0": 100.0, "class 1": 50.0}
    assert report.as_dict()["images"] == 3
    assert "confusion" not in report.as_dict()


def test_skipped_files_are_reported_and_not_counted() -> None:
    report = evaluate_classifier(task_of(torch.eye(3)), batches_of(torch.arange(3), 3, skipped=2), CPU)  # pyright: ignore
    assert report.images == 3
    assert report.skipped == [("bad0.jpg", "cut short"), ("bad1.jpg", "cut short")]
    assert report.as_dict()["skipped"] == [["bad0.jpg", "cut short"], ["bad1.jpg", "cut short"]]


def test_no_images_and_no_numbers_are_refused() -> None:
    with pytest.raises(UserError, match="no image could be read"):
        evaluate_classifier(task_of(torch.eye(3)), iter(()), CPU)
    with pytest.raises(UserError, match="not finite"):
        evaluate_classifier(task_of(torch.full((2, 3), torch.nan)), batches_of(torch.arange(2), 2), CPU)  # pyright: ignore


def test_one_of_several_processes_measures_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """The others wait for it at the next step: asking them for their counts would never end."""

    def asks(*_: object) -> None:
        raise AssertionError("the other processes were asked")

    monkeypatch.setattr("torchmetrics.metric.jit_distributed_available", lambda: True)
    monkeypatch.setattr("torchmetrics.metric.gather_all_tensors", asks)
    logits = torch.randn(12, 7, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(12) % 7
    report = evaluate_classifier(task_of(logits), batches_of(labels, 4), CPU)
    assert report.top1 == pytest.approx(100 * float((logits.argmax(1) == labels).float().mean()))
    assert report.confusion.sum() == 12
    assert report.top5 is not None
