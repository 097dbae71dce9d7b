"""Random-scale crops, mirror and colour shifts of an image and its mask; all randomness comes from a key."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pydantic
from PIL import Image

from edgemim.config import Config
from edgemim.edge.images import IMAGENET_MEAN
from edgemim.edge.segmentation import IGNORE

Box = tuple[float, float, float, float]
"""Left, top, right, bottom in pixels of the original."""

_TRIES = 10
_FILL = np.round(255 * np.array(IMAGENET_MEAN)).astype(np.uint8)


class SegmentationTransform(Config):
    """Augmentation of segmentation: the image at a random scale, a random square of it, mirror, colour.

    The defaults are those of ADE20K's training in mmsegmentation, which the lightweight study (arXiv 2404.12210) uses.
    """

    scale: tuple[float, float] = (0.5, 2.0)
    """Smallest and largest scale over that of evaluation."""
    flip: bool = True
    """Mirror left and right with probability one half."""
    largest_share: float = pydantic.Field(default=0.75, gt=0, le=1)
    """Crops of which one class takes a larger share are drawn again, up to ten times; 1 takes the first."""
    photometric: bool = True
    """Shift brightness, contrast, saturation and hue, each with probability one half."""

    @pydantic.field_validator("scale")
    @classmethod
    def _check_scale(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 < value[0] <= value[1]:
            raise ValueError(f"scale {list(value)} must satisfy 0 < smallest <= largest")
        return value

    def build(self, image_size: int, short_side: int) -> KeyedPairTransform:
        """The transform to squares of `image_size` pixels; at scale 1 the image's short side has `short_side`."""
        return KeyedPairTransform(self, image_size, short_side)


class KeyedPairTransform:
    """(uint8 [h, w, 3], uint8 [h, w], key) -> uint8 [3, s, s], uint8 [s, s]; beyond the image the mask is 255."""

    def __init__(self, config: SegmentationTransform, image_size: int, short_side: int) -> None:
        self.config, self.image_size, self.short_side = config, image_size, short_side

    def __call__(self, image: np.ndarray, mask: np.ndarray, key: int) -> tuple[np.ndarray, np.ndarray]:
        rng, size = random.Random(key), self.image_size
        height, width = mask.shape
        factor = rng.uniform(*self.config.scale) * self.short_side / min(height, width)
        full = max(1, round(height * factor)), max(1, round(width * factor))
        box, labels = self._cut(mask, full, rng)
        for _ in range(_TRIES - 1):
            if _largest_share(labels) <= self.config.largest_share:
                break
            box, labels = self._cut(mask, full, rng)
        pixels = _bilinear(image, box, *labels.shape)
        if self.config.flip and rng.random() < 0.5:
            pixels, labels = pixels[:, ::-1], labels[:, ::-1]
        if self.config.photometric:
            pixels = shift_colours(pixels, rng)
        return _padded(pixels, labels, size)

    def _cut(self, mask: np.ndarray, full: tuple[int, int], rng: random.Random) -> tuple[Box, np.ndarray]:
        """A random square of the picture at its full size in pixels: where it lies in the original, and its classes."""
        (rows, columns), (height, width), size = full, mask.shape, self.image_size
        top, left = rng.randint(0, max(rows - size, 0)), rng.randint(0, max(columns - size, 0))
        bottom, right = min(rows, top + size), min(columns, left + size)
        per_row, per_column = height / rows, width / columns
        box = (left * per_column, top * per_row, right * per_column, bottom * per_row)
        return box, _nearest(mask, box, bottom - top, right - left)


def _nearest(mask: np.ndarray, box: Box, rows: int, columns: int) -> np.ndarray:
    """The mask's part in `box` (left, top, right, bottom): each target pixel's centre looked up."""
    left, top, right, bottom = box
    y = (top + (np.arange(rows) + 0.5) * (bottom - top) / rows).astype(np.int64)
    x = (left + (np.arange(columns) + 0.5) * (right - left) / columns).astype(np.int64)
    return mask[np.minimum(y, mask.shape[0] - 1)][:, np.minimum(x, mask.shape[1] - 1)]


def _bilinear(image: np.ndarray, box: Box, rows: int, columns: int) -> np.ndarray:
    right, bottom = min(box[2], image.shape[1]), min(box[3], image.shape[0])
    clipped = (box[0], box[1], right, bottom)
    return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR, clipped))


def _largest_share(labels: np.ndarray) -> float:
    """Share of the most frequent class among the pixels that have one; 0 where none has (nothing to learn, but as
    published such a crop is taken)."""
    counts = np.bincount(labels.ravel(), minlength=256)[:IGNORE]
    present = counts[counts > 0]
    # As published: a crop with a single class is drawn again, too.
    return 1.0 if len(present) == 1 else float(counts.max() / max(counts.sum(), 1))


def _padded(pixels: np.ndarray, labels: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    rows, columns = labels.shape
    image, mask = np.empty((3, size, size), np.uint8), np.full((size, size), IGNORE, np.uint8)
    image[:] = _FILL[:, None, None]
    image[:, :rows, :columns] = pixels.transpose(2, 0, 1)
    mask[:rows, :columns] = labels
    return image, mask


def shift_colours(pixels: np.ndarray, rng: random.Random) -> np.ndarray:
    """Brightness ±32, contrast and saturation ×0.5 to 1.5, hue ±36°, each with probability one half; contrast comes
    before or after the colours, also by chance (SSD, arXiv 1512.02325, as in mmsegmentation)."""

    def linear(values: np.ndarray, alpha: float = 1.0, beta: float = 0.0) -> np.ndarray:
        return np.clip(values.astype(np.float32) * alpha + beta, 0, 255).astype(np.uint8)

    def coin() -> bool:
        return rng.random() < 0.5

    if coin():
        pixels = linear(pixels, beta=rng.uniform(-32, 32))
    contrast_first = coin()
    if contrast_first and coin():
        pixels = linear(pixels, alpha=rng.uniform(0.5, 1.5))
    if coin():
        saturation = rng.uniform(0.5, 1.5)
        pixels = _in_hsv(pixels, lambda hsv: hsv.__setitem__((..., 1), linear(hsv[..., 1], alpha=saturation)))
    if coin():
        # Pillow's circle of hues has 256 steps; uint8 wraps round as the circle does.
        turn = round(rng.uniform(-36, 36) * 256 / 360) % 256
        pixels = _in_hsv(pixels, lambda hsv: hsv.__setitem__((..., 0), hsv[..., 0] + np.uint8(turn)))
    if not contrast_first and coin():
        pixels = linear(pixels, alpha=rng.uniform(0.5, 1.5))
    return pixels


def _in_hsv(pixels: np.ndarray, change: Callable[[np.ndarray], None]) -> np.ndarray:
    # Not OpenCV's conversion: its threads may hang in a worker that was forked.
    hsv = np.array(Image.fromarray(np.ascontiguousarray(pixels)).convert("HSV"))
    change(hsv)
    channels = [Image.fromarray(np.ascontiguousarray(hsv[..., i])) for i in range(3)]
    return np.array(Image.merge("HSV", channels).convert("RGB"))
