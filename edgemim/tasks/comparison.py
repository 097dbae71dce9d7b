"""How alike the answers of two models are, in the metric of their task: what a quantised model lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from edgemim.data.segmentation.folder import SegmentationFolder
from edgemim.edge.images import ImageError, Preprocessing
from edgemim.edge.segmentation import SegmentationInference, largest, pixel_logits
from edgemim.errors import UserError
from edgemim.tasks.pixel_counts import PixelCounts

RunModel = Callable[[np.ndarray], np.ndarray]
"""float32 [b, 3, s, s], normalised -> float32 [b, classes, ...], logits."""

_NOTHING = "there are no held-out images to judge on; give --data DIR with images"


@dataclass(frozen=True)
class Limits:
    """What a quantised model must keep to.

    Attributes:
        max_drop: largest loss of the metric, percentage points.
        min_agreement: least share of equal answers, percent.
        min_cosine: least mean cosine of the outputs.
    """

    max_drop: float
    min_agreement: float = 99.0
    min_cosine: float = 0.999


@dataclass(frozen=True)
class Comparison:
    """Answers of an FP32 model and of its INT8 form on the same images.

    Attributes:
        metric: name of the task's metric.
        images: number of images both saw.
        labelled: how many of them have a known answer.
        score_fp32: the metric of the original on the labelled images, percent; None without labels.
        score_int8: the same of the quantised model.
        answers: what is counted in `agreement`: images, pixels.
        agreement: share of the answers that are the same, percent.
        cosine: mean over the images of the cosine of both outputs.
        cosine_worst: the smallest of them.
    """

    metric: str
    images: int
    labelled: int
    score_fp32: float | None
    score_int8: float | None
    answers: str
    agreement: float
    cosine: float
    cosine_worst: float

    @property
    def drop_points(self) -> float | None:
        """Loss of the metric in percentage points; negative is a gain; None without labels."""
        if self.score_int8 is None or self.score_fp32 is None:
            return None
        return self.score_fp32 - self.score_int8


def compare_classes(fp32: RunModel, int8: RunModel, batches: Iterable[tuple[np.ndarray, np.ndarray]]) -> Comparison:
    """Top-1 of two classifiers over batches of (images, labels), a label of -1 being unknown. Raises UserError without images."""
    rows: list[np.ndarray] = []
    for images, labels in batches:
        a, b = fp32(images), int8(images)
        first, second = a.argmax(axis=1), b.argmax(axis=1)
        columns = (labels >= 0, first == labels, second == labels, first == second, cosines(a, b))
        rows.append(np.stack([column.astype(np.float64) for column in columns], axis=1))
    if not rows:
        raise UserError(_NOTHING)
    known, right_fp32, right_int8, same, cosine = np.concatenate(rows).T
    labelled = int(known.sum())
    return Comparison(
        metric="top-1",
        images=len(known),
        labelled=labelled,
        score_fp32=float(100 * right_fp32.sum() / labelled) if labelled else None,
        score_int8=float(100 * right_int8.sum() / labelled) if labelled else None,
        answers="images",
        agreement=float(100 * same.mean()),
        cosine=float(cosine.mean()),
        cosine_worst=float(cosine.min()),
    )


def compare_pixels(
    fp32: RunModel,
    int8: RunModel,
    folder: SegmentationFolder,
    preprocessing: Preprocessing,
    inference: SegmentationInference,
) -> Comparison:
    """mIoU of two segmentation models over a folder, each image labelled as a user's is, in windows or whole.

    Every pixel counts in the agreement, those without a class too. Raises UserError without images, or if a mask is at
    fault; an image that cannot be read is left out.
    """
    counts = PixelCounts(folder.classes), PixelCounts(folder.classes)
    cosine: list[float] = []
    same = pixels = labelled = 0
    for index in range(len(folder)):
        try:
            image, mask = folder.read(index)
            a, b = (pixel_logits(image, model, preprocessing, inference) for model in (fp32, int8))
        except ImageError:
            continue
        first, second = largest(a, *mask.shape), largest(b, *mask.shape)
        for count, named in zip(counts, (first, second), strict=True):
            count.add(mask, named)
        same, pixels = same + int((first == second).sum()), pixels + mask.size
        labelled += bool((mask < len(folder.classes)).any())
        cosine.append(float(cosines(a[None], b[None])[0]))
    if not cosine:
        raise UserError(_NOTHING)
    original, quantised = (count.report(len(cosine)) if labelled else None for count in counts)
    return Comparison(
        metric="mIoU",
        images=len(cosine),
        labelled=labelled,
        score_fp32=original.miou if original else None,
        score_int8=quantised.miou if quantised else None,
        answers="pixels",
        agreement=100 * same / pixels,
        cosine=float(np.mean(cosine)),
        cosine_worst=float(np.min(cosine)),
    )


def cosines(reference: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Cosine of each row of two arrays [images, ...], float64 [images]; rows that are zero in both agree."""
    a, b = (array.reshape(len(array), -1).astype(np.float64) for array in (reference, other))
    product = np.linalg.norm(a, axis=1) * np.linalg.norm(b, axis=1)
    both_zero = ~a.any(axis=1) & ~b.any(axis=1)
    return np.where(both_zero, 1.0, (a * b).sum(axis=1) / np.where(product > 0, product, np.inf))
