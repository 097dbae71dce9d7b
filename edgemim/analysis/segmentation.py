"""A segmentation model measured on a folder of images and masks, at the images' own size."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from edgemim.data.segmentation.folder import SegmentationFolder
from edgemim.edge.images import ImageError
from edgemim.errors import UserError
from edgemim.tasks.pixel_counts import PixelCounts, SegmentationReport


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
