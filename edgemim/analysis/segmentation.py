"""mIoU, pixel accuracy and the confusion of a segmentation model, counted pixel by pixel at the images' own size."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from edgemim.data.segmentation.folder import SegmentationFolder
from edgemim.edge.images import ImageError
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


def evaluate_segmenter(
    predict: Callable[[np.ndarray], np.ndarray],
    folder: SegmentationFolder,
    *,
    limit: int | None = None,
    show: Callable[[np.ndarray, np.ndarray, np.ndarray], None] | None = None,
) -> SegmentationReport:
    """Label each image of a folder and count its pixels.

    Args:
        predict: uint8 [h, w, 3] -> uint8 [h, w], the class of each pixel.
        folder: images and masks.
        limit: measure on so many images, spread evenly over the folder.
        show: called with image, mask and prediction of each image.

    Raises:
        UserError: if no image can be read, or a mask is at fault.
    """
    counts, images, skipped = PixelCounts(folder.classes), 0, []
    chosen = range(len(folder))
    if limit is not None and limit < len(folder):
        chosen = [math.floor(i * len(folder) / limit) for i in range(limit)]
    for index in chosen:
        try:
            image, mask = folder.read(index)
            predicted = predict(image)
        except ImageError as error:
            skipped.append((str(folder.path(index)), error.reason))
            continue
        counts.add(mask, predicted)
        images += 1
        if show is not None:
            show(image, mask, predicted)
    if not images:
        raise UserError(f"no image in {folder.root} could be read; the first: {': '.join(skipped[0])}")
    return counts.report(images, skipped)


def majority_baseline(
    train_pixels: np.ndarray, held_out_pixels: np.ndarray, labels: tuple[str, ...]
) -> dict[str, object]:
    """What naming every pixel by the most frequent training class gives on the held-out masks, percent.

    Args:
        train_pixels: int64 [classes], pixels of each class in the training masks.
        held_out_pixels: the same of the held-out ones.
        labels: names of the classes.
    """
    counts, most = PixelCounts(labels), int(train_pixels.argmax())
    counts.confusion[:, most] = held_out_pixels
    report = counts.report(0)
    return {"class": labels[most], "miou": report.miou, "pixel_accuracy": report.pixel_accuracy}
