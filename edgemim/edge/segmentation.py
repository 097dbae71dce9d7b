"""From a model that labels fixed squares to the classes of every pixel of an image of any size; numpy alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

import cv2
import numpy as np
from PIL import Image
from pydantic import Field

from edgemim.config import Config
from edgemim.edge.images import MAX_PIXELS, ImageError, Preprocessing

IGNORE = 255
"""Label of pixels that belong to no class: neither trained on nor counted."""

RunModel = Callable[[np.ndarray], np.ndarray]
"""float32 [b, 3, s, s], normalised -> float32 [b, classes, s, s]."""


class SegmentationInference(Config):
    """How a model for squares is laid over an image."""

    mode: Literal["slide", "whole"] = "slide"
    """slide: windows over the image, their logits averaged. whole: the image squeezed into one square, faster."""
    short_side: Annotated[int, Field(ge=1, le=16384)] = 512
    """slide: the image's short side is resized to so many pixels first; at least the model's square."""
    stride: Annotated[int, Field(ge=1)] = 341
    """slide: pixels from one window to the next; at most the model's square, so that nothing is left out."""

    def fits(self, size: int) -> None:
        """Raises ValueError if windows of `size` pixels would not cover an image."""
        if self.mode == "slide" and self.short_side < size:
            raise ValueError(f"inference.short_side {self.short_side} is below the model's square of {size} pixels")
        if self.mode == "slide" and self.stride > size:
            raise ValueError(f"inference.stride {self.stride} is above the model's square of {size} pixels")

    def working_size(self, height: int, width: int, size: int) -> tuple[int, int]:
        """Rows and columns that an image is resized to, for windows of `size` pixels.

        Raises ImageError where an extreme shape would take over 128 million pixels.
        """
        if self.mode == "whole":
            return size, size
        scale = self.short_side / min(height, width)
        rows, columns = max(self.short_side, round(height * scale)), max(self.short_side, round(width * scale))
        if rows * columns > MAX_PIXELS:
            raise ImageError("", f"is too long ({width}×{height} pixels) to be labelled in windows; cut it first")
        return rows, columns


def window_starts(length: int, size: int, stride: int) -> list[int]:
    """Where windows of `size` begin, `stride` apart; the last one is moved back to end at the border.

    As in mmsegmentation's slide inference: max(length - size + stride - 1, 0) // stride + 1 windows.
    """
    count = max(length - size + stride - 1, 0) // stride + 1
    return [max(min(number * stride, length - size), 0) for number in range(count)]


def resize_image(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [rows, columns, 3], bilinear with antialiasing as Pillow does it."""
    return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR))


def slide_logits(pixels: np.ndarray, run: RunModel, preprocessing: Preprocessing, stride: int) -> np.ndarray:
    """uint8 [h, w, 3], no side below the square -> float32 [classes, h, w]: the mean over the windows of each pixel."""
    size = preprocessing.image_size
    height, width = pixels.shape[:2]
    count = np.zeros((height, width), np.float32)
    total: np.ndarray | None = None
    for top in window_starts(height, size, stride):
        for left in window_starts(width, size, stride):
            place = (slice(top, top + size), slice(left, left + size))
            logits = run(preprocessing.normalise(pixels[place])[None])[0]
            if total is None:
                total = np.zeros((len(logits), height, width), np.float32)
            total[:, *place] += logits
            count[place] += 1
    assert total is not None
    return total / count


def label_pixels(
    image: np.ndarray, run: RunModel, preprocessing: Preprocessing, inference: SegmentationInference
) -> np.ndarray:
    """uint8 [h, w, 3] -> uint8 [h, w], the class of each pixel: logits are resized to the image, then the largest counts.

    Raises ImageError if the image's shape is too extreme.
    """
    height, width = image.shape[:2]
    return largest(pixel_logits(image, run, preprocessing, inference), height, width)


def pixel_logits(
    image: np.ndarray, run: RunModel, preprocessing: Preprocessing, inference: SegmentationInference
) -> np.ndarray:
    """uint8 [h, w, 3] -> float32 [classes, rows, columns] at the working size. Raises ImageError if it is too extreme."""
    height, width = image.shape[:2]
    pixels = resize_image(image, *inference.working_size(height, width, preprocessing.image_size))
    # One window of the size of the whole is the whole.
    return slide_logits(pixels, run, preprocessing, min(inference.stride, preprocessing.image_size))


def largest(logits: np.ndarray, height: int, width: int) -> np.ndarray:
    """float32 [classes, h, w] -> uint8 [height, width]; class by class, so that no second full array is needed."""
    best = np.full((height, width), -np.inf, np.float32)
    labels = np.zeros((height, width), np.uint8)
    for number, plane in enumerate(logits):
        resized = cv2.resize(plane, (width, height), interpolation=cv2.INTER_LINEAR)
        better = resized > best
        labels[better] = number
        np.maximum(best, resized, out=best)
    return labels
