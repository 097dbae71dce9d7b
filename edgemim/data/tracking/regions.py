"""Any region of an unlabelled picture as a target: tracking learnt without a box, from what stays the same in a crop."""

from __future__ import annotations

import math
import random

import numpy as np
from PIL import Image, ImageOps

from edgemim.data.folders import ImageFolder
from edgemim.data.tracking.pairs import Shot, ShotPair
from edgemim.edge.images import ImageError
from edgemim.edge.tracking.boxes import Box

_SIDE = (0.08, 0.45)
_RATIO = (0.4, 2.5)
_CANDIDATES = 6
_SMALL_PX = 96
_ORIENTATION_TAG = 0x0112
_TURNED = (5, 6, 7, 8)


class RandomRegions:
    """Of a random picture, the most structured of a few random boxes: a flat one, say of sky, could be anywhere.

    The geometric mean of a box's sides is 0.08 to 0.45 of the picture's short side, its ratio 0.4 to 2.5, both even on a
    logarithmic scale.
    """

    def __init__(self, name: str, folder: ImageFolder) -> None:
        self.name, self.folder, self.fingerprint = name, folder, folder.fingerprint

    def __len__(self) -> int:
        return len(self.folder)

    def draw(self, rng: random.Random) -> ShotPair:
        """One region, twice. Raises ImageError or OSError if the picture cannot be opened."""
        path = self.folder.path(rng.randrange(len(self.folder)))
        try:
            with Image.open(path) as picture:
                size, grey = _sketch(picture)
        except OSError:
            raise
        except Exception as error:  # Pillow's readers raise nearly every class on damaged bytes
            raise ImageError(str(path), f"cannot be decoded ({type(error).__name__}: {error})") from error
        boxes = [random_box(*size, rng) for _ in range(_CANDIDATES)]
        best = max(boxes, key=lambda box: _structure(grey, box, size))
        shot = Shot(path, best)
        return ShotPair(shot, shot)


def random_box(width: int, height: int, rng: random.Random) -> Box:
    """A box inside a picture of this size, in pixels."""
    mean = min(width, height) * math.exp(rng.uniform(*map(math.log, _SIDE)))
    stretch = math.sqrt(math.exp(rng.uniform(*map(math.log, _RATIO))))
    wide, high = min(width, mean * stretch), min(height, mean / stretch)
    return Box(rng.uniform(0, width - wide), rng.uniform(0, height - high), wide, high)


def _sketch(picture: Image.Image) -> tuple[tuple[int, int], np.ndarray]:
    """Width and height of the upright picture, and itself small and grey; of a JPEG only that much is decoded."""
    turned = picture.getexif().get(_ORIENTATION_TAG) in _TURNED
    size = (picture.height, picture.width) if turned else picture.size
    picture.draft("L", (_SMALL_PX, _SMALL_PX))
    small = ImageOps.exif_transpose(picture).convert("L")
    small.thumbnail((_SMALL_PX, _SMALL_PX), Image.Resampling.BOX)
    return size, np.asarray(small, np.float32)


def _structure(grey: np.ndarray, box: Box, size: tuple[int, int]) -> float:
    """Mean step between neighbouring pixels inside a box."""
    per_column, per_row = grey.shape[1] / size[0], grey.shape[0] / size[1]
    left, top = int(box.left * per_column), int(box.top * per_row)
    right = max(left + 2, math.ceil((box.left + box.width) * per_column))
    bottom = max(top + 2, math.ceil((box.top + box.height) * per_row))
    part = grey[top:bottom, left:right]
    steps = [np.abs(np.diff(part, axis=axis)) for axis in (0, 1) if part.shape[axis] > 1]
    return float(sum(step.mean() for step in steps)) if steps else 0.0
