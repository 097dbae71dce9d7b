"""From the network's maps to a box in the image: Hann window, maximum, size and offset, back into pixels (OSTrack's)."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from edgemim.edge.tracking.boxes import Box


class Decoded(NamedTuple):
    """What the maps say: a box relative to the crop (its side is 1), and how sure they are."""

    centre_x: float
    centre_y: float
    width: float
    height: float
    score: float
    """Maximum of the score map before the window; 0..1."""


@cache
def hann_window(grid: int) -> np.ndarray:
    """float32 [grid, grid]: the product of two centred Hann windows 0.5 (1 − cos(2πk / (grid + 1))), k = 1..grid."""
    steps = np.arange(1, grid + 1)
    line = 0.5 * (1 - np.cos(2 * np.pi * steps / (grid + 1)))
    window = np.outer(line, line).astype(np.float32)
    window.setflags(write=False)
    return window


def decode_maps(score: np.ndarray, size: np.ndarray, offset: np.ndarray, window: np.ndarray | None) -> Decoded:
    """Score [1, 1, g, g], size [1, 2, g, g] (width, height) and offset [1, 2, g, g] (x, y, in cells) -> one box.

    The cell is that of the largest score times `window`; a score map that is not finite gives a score of 0.
    """
    plane = score[0, 0]
    grid = plane.shape[-1]
    if not np.isfinite(plane).all():
        return Decoded(0.5, 0.5, np.nan, np.nan, 0.0)
    row, column = divmod(int(np.argmax(plane if window is None else plane * window)), grid)
    (shift_x, shift_y), (width, height) = offset[0, :, row, column], size[0, :, row, column]
    return Decoded(
        centre_x=(column + float(shift_x)) / grid,
        centre_y=(row + float(shift_y)) / grid,
        width=float(width),
        height=float(height),
        score=float(plane.max()),
    )


def to_image(decoded: Decoded, previous: Box, side_px: float, size_rate: float = 1.0) -> Box:
    """The box in the image, from a search region of `side_px` pixels of the image centred on the box before.

    As published, the region's corner counts unrounded here. With a `size_rate` below 1 the box goes from its old size
    `size_rate` times the score of the way to the found one.
    """
    centre_x = previous.left + 0.5 * previous.width + (decoded.centre_x - 0.5) * side_px
    centre_y = previous.top + 0.5 * previous.height + (decoded.centre_y - 0.5) * side_px
    width, height = decoded.width * side_px, decoded.height * side_px
    if size_rate < 1:
        step = size_rate * decoded.score
        width += (1 - step) * (previous.width - width)
        height += (1 - step) * (previous.height - height)
    return Box(centre_x - 0.5 * width, centre_y - 0.5 * height, width, height)
