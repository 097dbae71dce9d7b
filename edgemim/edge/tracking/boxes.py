"""Boxes of tracking (left, top, width, height in pixels): reading them from text, overlaps and distances of many at once.

Arrays of boxes are float64 [n, 4]; a row of NaN means that there is no box.
"""

from __future__ import annotations

import io
from typing import NamedTuple

import numpy as np

from edgemim.errors import UserError

_DELIMITERS = str.maketrans(",;", "  ")
_COLUMNS, _POLYGON = 4, 8


class Box(NamedTuple):
    """One box in pixels. Coordinates are continuous: the right edge is left + width."""

    left: float
    top: float
    width: float
    height: float

    @staticmethod
    def of(values: np.ndarray) -> Box:
        """[4] -> Box."""
        left, top, width, height = (float(value) for value in values)
        return Box(left, top, width, height)


def parse_boxes(text: str, where: str, *, polygons: bool = False) -> np.ndarray:
    """Lines of four numbers, in any mixture of commas, tabs and spaces -> [n, 4]; 'nan' is a number here.

    With `polygons` a line may hold eight numbers, the corners of a polygon: its axis-aligned box is taken. Empty lines
    at the end are no boxes. Raises UserError that names `where` and the line.
    """
    text = text.lstrip("\ufeff").rstrip()
    if (table := _plain_table(text.translate(_DELIMITERS))) is not None:
        return table
    rows = []
    for number, line in enumerate(text.splitlines(), start=1):
        words = line.translate(_DELIMITERS).split()
        if polygons and line.startswith("m"):
            raise UserError(f"{where}, line {number}: holds a mask; only boxes and polygons are read")
        if len(words) != _COLUMNS and not (polygons and len(words) == _POLYGON):
            wanted = "4 (x, y, width, height)" + (" or 8 (a polygon)" if polygons else "")
            raise UserError(f"{where}, line {number}: {len(words)} numbers, expected {wanted}")
        try:
            values = [float(word) for word in words]
        except ValueError:
            raise UserError(f"{where}, line {number}: {line.strip()[:40]!r} is not a row of numbers") from None
        rows.append(values if len(values) == _COLUMNS else polygon_to_box(np.array(values)))
    return np.array(rows, np.float64).reshape(-1, _COLUMNS)


def _plain_table(lines: str) -> np.ndarray | None:
    """The rows [n, 4] where each line holds four numbers (LaSOT's hold 685,360); None where some line needs a look."""
    if not lines:
        return None
    try:
        table = np.loadtxt(io.StringIO(lines), ndmin=2, comments=None)
    except ValueError:
        return None
    return table if table.shape == (lines.count("\n") + 1, _COLUMNS) else None


def polygon_to_box(polygon: np.ndarray) -> np.ndarray:
    """Corners x, y, x, y, ... [..., 2 k] -> the smallest upright box that holds them [..., 4]."""
    x, y = polygon[..., 0::2], polygon[..., 1::2]
    left, top = x.min(-1), y.min(-1)
    return np.stack([left, top, x.max(-1) - left, y.max(-1) - top], axis=-1)


def has_area(boxes: np.ndarray) -> np.ndarray:
    """[..., 4] -> bool [...]: four finite numbers, width and height above zero."""
    return np.asarray(np.isfinite(boxes).all(-1) & (boxes[..., 2:] > 0).all(-1))


def centres(boxes: np.ndarray) -> np.ndarray:
    """Middle points of continuous boxes: [..., 4] -> [..., 2]."""
    return boxes[..., :2] + 0.5 * boxes[..., 2:]


def iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Intersection over union of pairs, [n, 4] and [n, 4] -> [n]; 0 where a box has no area, is NaN, or neither meets."""
    usable = has_area(first) & has_area(second)
    low = np.maximum(first[..., :2], second[..., :2])
    high = np.minimum(first[..., :2] + first[..., 2:], second[..., :2] + second[..., 2:])
    with np.errstate(invalid="ignore"):  # of boxes that are not usable
        shared = np.prod(np.clip(high - low, 0, None), axis=-1)
        union = np.prod(first[..., 2:], axis=-1) + np.prod(second[..., 2:], axis=-1) - shared
    return np.divide(shared, union, out=np.zeros(usable.shape), where=usable & (union > 0))


def clip_box(box: Box, width: float, height: float, *, margin: float = 0.0) -> Box:
    """Cut a box to an image, then keep at least `margin` pixels of it on each axis (as OSTrack's inference does).

    The result lies in the image wherever the image is larger than the margin.
    """
    left = min(max(0.0, box.left), width - margin)
    right = min(max(margin, box.left + box.width), width)
    top = min(max(0.0, box.top), height - margin)
    bottom = min(max(margin, box.top + box.height), height)
    return Box(left, top, max(margin, right - left), max(margin, bottom - top))
