"""Square crops around a box, resized for the network: OSTrack's (arXiv 2203.11991), with cv2's bilinear filter."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np

from edgemim.edge.images import Preprocessing
from edgemim.edge.tracking.boxes import Box

# A crop of a whole large frame would take gigabytes before it is resized; above this side it is sampled directly.
_MAX_COPIED_SIDE_PX = 4096


class Crop(NamedTuple):
    """A square cut out of an image and resized."""

    pixels: np.ndarray
    """uint8 [size, size, 3]; black where the square leaves the image."""
    resize_factor: float
    """Pixels of the crop for one of the image."""
    left: int
    """First column of the square in the image; may be negative."""
    top: int
    """First row of the square in the image; may be negative."""
    side: int
    """Side of the square in the image, pixels."""


def crop_square(image: np.ndarray, box: Box, factor: float, size: int, *, whole: bool = False) -> Crop:
    """Cut the square of side ceil(factor · sqrt(width · height)) centred on `box` and resize it to `size`.

    Its corner is rounded to whole pixels (half to even). `image` is uint8 [h, w, 3]. The published code takes the last
    row and column of an image for outside where a square reaches them; with `whole` they are kept. Raises ValueError on
    a box that is not finite or has no area.
    """
    left, top, side = _square(box, factor)
    resize_factor = size / side
    if side > _MAX_COPIED_SIDE_PX:
        return Crop(_sample(image, left, top, side, size), resize_factor, left, top, side)
    lost = 0 if whole else 1
    above, before, below, behind = _outside(image.shape[0] - lost, image.shape[1] - lost, left, top, side)
    patch = image[top + above : top + side - below, left + before : left + side - behind]
    if patch.size == 0:
        return Crop(np.zeros((size, size, 3), np.uint8), resize_factor, left, top, side)
    if above or before or below or behind:
        patch = cv2.copyMakeBorder(patch, above, below, before, behind, cv2.BORDER_CONSTANT, value=(0, 0, 0))
    return Crop(cv2.resize(patch, (size, size), interpolation=cv2.INTER_LINEAR), resize_factor, left, top, side)


def padding_mask(crop: Crop, height: int, width: int) -> np.ndarray:
    """bool [size, size]: True where a crop of an image of `height` rows and `width` columns shows what lies outside it.

    As published: the image's last row and column count as outside, and so does a pixel mixed of both.
    """
    above, before, below, behind = _outside(height - 1, width - 1, crop.left, crop.top, crop.side)
    mask = np.ones((crop.side, crop.side))
    mask[above : crop.side - below, before : crop.side - behind] = 0
    size = crop.pixels.shape[0]
    return cv2.resize(mask, (size, size), interpolation=cv2.INTER_LINEAR) > 0


class Normaliser:
    """uint8 [h, w, 3] -> float32 [1, 3, h, w], bit for bit `Preprocessing.normalise`, by a table of the 256 levels."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        levels = np.repeat(np.arange(256, dtype=np.uint8)[None, :, None], 3, axis=2)
        self._tables = preprocessing.normalise(levels)[:, 0]  # [3, 256]

    def __call__(self, pixels: np.ndarray) -> np.ndarray:
        """Normalise one crop."""
        result = np.empty((1, 3, *pixels.shape[:2]), np.float32)
        for channel, table in enumerate(self._tables):
            np.take(table, pixels[..., channel], out=result[0, channel], mode="clip")
        return result


def _square(box: Box, factor: float) -> tuple[int, int, int]:
    area = box.width * box.height
    if not all(map(math.isfinite, box)) or box.width <= 0 or box.height <= 0 or not math.isfinite(area):
        raise ValueError(f"box {tuple(box)} has no area")
    side = max(1, math.ceil(math.sqrt(area) * factor))
    left = round(box.left + 0.5 * box.width - 0.5 * side)
    top = round(box.top + 0.5 * box.height - 0.5 * side)
    return left, top, side


def _outside(height: int, width: int, left: int, top: int, side: int) -> tuple[int, int, int, int]:
    """Rows above, columns before, rows below and columns behind the image that a square covers, each at most its side."""
    lengths = (-top, -left, top + side - height, left + side - width)
    above, before, below, behind = (min(side, max(0, length)) for length in lengths)
    return above, before, below, behind


def _sample(image: np.ndarray, left: int, top: int, side: int, size: int) -> np.ndarray:
    """The same crop without a copy of the square, in cv2's coarser steps of 1/32 pixel."""
    scale = side / size
    # Pixel centres: crop column c shows image column left + (c + 0.5) · scale - 0.5.
    shift = 0.5 * scale - 0.5
    matrix = np.array([[scale, 0, left + shift], [0, scale, top + shift]])
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return cv2.warpAffine(
        image, matrix, (size, size), flags=flags, borderMode=cv2.BORDER_CONSTANT, borderValue=(0, 0, 0)
    )
