"""Random erasing: a keyed rectangle of noise in a training image (arXiv 1708.04896), as timm's 'pixel' mode draws it."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

import numpy as np

from edgemim.edge.images import IMAGENET_MEAN, IMAGENET_STD

_AREA, _ASPECT, _TRIES = (0.02, 1 / 3), (0.3, 1 / 0.3), 10


class Erased:
    """A keyed transform, then with a probability a rectangle of its picture replaced by noise.

    The noise is normal with ImageNet's mean and deviation, cut off at black and white; timm adds it behind normalisation,
    where nothing is cut off.
    """

    def __init__(self, transform: Callable[[np.ndarray, int], np.ndarray], probability: float) -> None:
        self.transform, self.probability = transform, probability

    def __call__(self, image: np.ndarray, key: int) -> np.ndarray:
        picture = self.transform(image, key)
        height, width = picture.shape[-2:]
        box = erased_box(height, width, self.probability, random.Random(f"erase/{key}"))
        if box is not None:
            top, left, rows, columns = box
            noise = np.random.default_rng([key & 0xFFFFFFFF, key >> 32]).standard_normal((rows, columns, 3), np.float32)
            pixels = (noise * np.array(IMAGENET_STD, np.float32) + np.array(IMAGENET_MEAN, np.float32)) * 255
            erased = np.clip(np.rint(pixels), 0, 255).astype(np.uint8)
            picture[:, top : top + rows, left : left + columns] = erased.transpose(2, 0, 1)
        return picture


def erased_box(height: int, width: int, probability: float, rng: random.Random) -> tuple[int, int, int, int] | None:
    """Draw (top, left, rows, columns) with 2 % to a third of the area and aspect ratio 0.3 to 3.3; None if none is drawn.

    Numbers are drawn in timm's order, so that its own class, seeded alike, erases the same box (a test compares them).
    """
    if rng.random() > probability:
        return None
    low, high = map(math.log, _ASPECT)
    for _ in range(_TRIES):
        area = rng.uniform(*_AREA) * height * width
        ratio = math.exp(rng.uniform(low, high))
        rows, columns = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if rows < height and columns < width:
            return rng.randint(0, height - rows), rng.randint(0, width - columns), rows, columns
    return None
