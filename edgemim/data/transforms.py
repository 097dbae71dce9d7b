"""Image transforms whose randomness comes from a key alone: uint8 [h, w, 3] in, uint8 [3, s, s] out."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageOps
from pydantic import Field, field_validator

from edgemim.config import Config
from edgemim.data.erasing import Erased
from edgemim.edge.images import IMAGENET_MEAN, Preprocessing
from edgemim.errors import UserError

KeyedTransform = Callable[[np.ndarray, int], np.ndarray]
"""(uint8 [h, w, 3], key) -> uint8 [3, s, s], contiguous; [views, 3, s, s] where it makes several of one image."""

Interpolation = Literal["bicubic", "bilinear", "random"]
Scale = tuple[float, float]
_RATIO = (3 / 4, 4 / 3)
_PADDING = 4
_FILTERS = {
    "bicubic": (Image.Resampling.BICUBIC,),
    "bilinear": (Image.Resampling.BILINEAR,),
    "random": (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC),
}


class PretrainTransform(Config):
    """The light augmentation of masked image modeling: one crop and a flip (MAE, arXiv 2111.06377, appendix A)."""

    crop: Literal["random_resized", "simple_resized", "none"] = "random_resized"
    """random_resized: a random part, resized. simple_resized: short side resized, then a random square of it
    (PixMIM, arXiv 2303.02416). none: short side resized, centre square."""
    crop_scale: Scale = (0.2, 1.0)
    """Smallest and largest part of the image's area that random_resized takes."""
    flip: bool = True
    """Mirror left and right with probability one half."""
    interpolation: Interpolation = "bicubic"
    """random draws bilinear or bicubic for each image."""

    @field_validator("crop_scale")
    @classmethod
    def _check_scale(cls, value: Scale) -> Scale:
        return _valid_scale(value)

    def build(self, image_size: int) -> KeyedTransform:
        """The transform that this configuration describes; its output is a square of `image_size` pixels."""
        return CropAndFlip(image_size, self.crop, self.crop_scale, self.flip, self.interpolation)


class FinetuneTransform(Config):
    """Augmentation of supervised fine-tuning: random resized crop, flip, RandAugment, random erasing."""

    crop_scale: Scale = (0.08, 1.0)
    """Smallest and largest part of the image's area that the crop takes."""
    flip: bool = True
    """Mirror left and right with probability one half."""
    rand_augment: str = "rand-m10-mstd0.5-inc1"
    """timm's policy string (rand-..., augmix-..., original, v0); empty for none. The default is MAE-Lite's."""
    erasing: float = Field(default=0.0, ge=0, le=1)
    """Probability that a rectangle of the picture becomes noise."""
    interpolation: Interpolation = "bicubic"
    """random draws bilinear or bicubic for each image."""

    @field_validator("crop_scale")
    @classmethod
    def _check_scale(cls, value: Scale) -> Scale:
        return _valid_scale(value)

    def build(self, image_size: int) -> KeyedTransform:
        """The transform to squares of `image_size` pixels. Raises UserError if timm does not know the policy."""
        crop = CropAndFlip(image_size, "random_resized", self.crop_scale, self.flip, self.interpolation)
        whole: KeyedTransform = crop
        if self.rand_augment:
            whole = Augmented(crop, _timm_policy(self.rand_augment, image_size, self.interpolation))
        return Erased(whole, self.erasing) if self.erasing > 0 else whole


class EvalTransform:
    """The edge wing's evaluation crop, stopped before normalisation: no randomness, the key is ignored."""

    def __init__(self, preprocessing: Preprocessing) -> None:
        self.preprocessing = preprocessing
        self.image_size = preprocessing.image_size

    def __call__(self, image: np.ndarray, key: int = 0) -> np.ndarray:
        return _channels_first(self.preprocessing.resize_crop(image))


class CropAndFlip:
    """A keyed crop to a square and a keyed mirror.

    The numbers come from `random.Random(key)`: seeding it takes 5 µs, and no global generator is touched. They are
    drawn in timm's order, so that timm's own crop, seeded alike, gives the same picture (a test compares them).
    """

    def __init__(self, image_size: int, crop: str, crop_scale: Scale, flip: bool, interpolation: Interpolation) -> None:
        self.image_size = image_size
        self.crop = crop
        self.crop_scale = crop_scale
        self.flip = flip
        self.interpolation = interpolation

    def __call__(self, image: np.ndarray, key: int) -> np.ndarray:
        return _channels_first(self.square(image, key))

    def square(self, image: np.ndarray, key: int) -> np.ndarray:
        """uint8 [s, s, 3], before it is turned channels-first."""
        rng = random.Random(key)
        height, width = image.shape[:2]
        filters = _FILTERS[self.interpolation]
        if self.crop == "random_resized":
            top, left, rows, columns = random_resized_box(height, width, self.crop_scale, rng)
            # Cut out first: Pillow's resize(box=...) would copy the whole picture into its own layout (5 % slower),
            # and its filter would look across the box's border, which torchvision's and timm's crop does not.
            part = image[top : top + rows, left : left + columns]
            square = _resize(part, (self.image_size, self.image_size), rng.choice(filters))
        else:
            padding = _PADDING if self.crop == "simple_resized" else None
            square = _short_side_crop(image, self.image_size, padding, rng, filters)
        return square[:, ::-1] if self.flip and rng.random() < 0.5 else square


class Augmented:
    """A keyed crop, then one of timm's policies with the global generators that it draws from seeded by the key."""

    def __init__(self, crop: CropAndFlip, policy: Callable[[Image.Image], Image.Image]) -> None:
        self.crop = crop
        self.policy = policy

    def __call__(self, image: np.ndarray, key: int) -> np.ndarray:
        square = Image.fromarray(np.ascontiguousarray(self.crop.square(image, key)))
        with seeded_globals(key):
            return _channels_first(np.asarray(self.policy(square)))


@contextmanager
def seeded_globals(key: int) -> Iterator[None]:
    """Seed Python's and NumPy's global generators from `key`, and put them back afterwards.

    timm's auto_augment draws from these two (never from torch's).
    """
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(f"policy/{key}")
    np.random.seed([key & 0xFFFFFFFF, key >> 32])
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def random_resized_box(height: int, width: int, scale: Scale, rng: random.Random) -> tuple[int, int, int, int]:
    """Draw (top, left, rows, columns) with area in `scale` and aspect ratio in 3/4 … 4/3.

    After ten boxes that do not fit: the largest centred box with an allowed ratio. Source: Inception's crop as in
    torchvision's RandomResizedCrop.
    """
    low, high = (math.log(ratio) for ratio in _RATIO)
    for _ in range(10):
        area = rng.uniform(*scale) * (height * width)
        ratio = math.exp(rng.uniform(low, high))
        # At least one pixel: a tiny picture would otherwise give an empty box.
        columns = max(1, round(math.sqrt(area * ratio)))
        rows = max(1, round(math.sqrt(area / ratio)))
        if columns <= width and rows <= height:
            return rng.randint(0, height - rows), rng.randint(0, width - columns), rows, columns
    rows = min(height, max(1, round(width / _RATIO[0])))
    columns = min(width, max(1, round(height * _RATIO[1])))
    return (height - rows) // 2, (width - columns) // 2, rows, columns


def _short_side_crop(
    image: np.ndarray, size: int, padding: int | None, rng: random.Random, filters: tuple[Image.Resampling, ...]
) -> np.ndarray:
    """Short side to `size`, then a square: centred, or anywhere in the picture padded by reflection.

    Only the square's part is resized: the whole of a 1×60000 strip would become 3 billion pixels.
    """
    height, width = image.shape[:2]
    short = min(height, width)
    full = (int(size * height / short), int(size * width / short))
    if padding is None:
        starts = [round((length - size) / 2) for length in full]
    else:
        starts = [rng.randint(0, length + 2 * padding - size) - padding for length in full]
    spans = [(max(0, start), min(length, start + size)) for start, length in zip(starts, full, strict=True)]
    (top, bottom), (left, right) = spans
    per_row, per_column = height / full[0], width / full[1]
    box = (left * per_column, top * per_row, min(width, right * per_column), min(height, bottom * per_row))
    part = _resize(image, (right - left, bottom - top), rng.choice(filters), box)
    rows, columns = (
        _reflected(start, size, length) - span[0] for start, length, span in zip(starts, full, spans, strict=True)
    )
    # Most squares need no reflection, and a gather costs as much as the resize.
    if part.shape[:2] == (size, size):
        return part
    return part.take(rows, axis=0).take(columns, axis=1)


def _reflected(start: int, size: int, length: int) -> np.ndarray:
    """Positions start … start + size - 1, those outside [0, length) mirrored at the border pixel."""
    positions = np.abs(np.arange(start, start + size))
    return np.where(positions >= length, 2 * (length - 1) - positions, positions)


def _resize(
    image: np.ndarray,
    size: tuple[int, int],
    resample: Image.Resampling,
    box: tuple[float, float, float, float] | None = None,
) -> np.ndarray:
    """Resize to (width, height) with Pillow, whose filters widen when they shrink (no aliasing)."""
    return np.asarray(Image.fromarray(np.ascontiguousarray(image)).resize(size, resample, box))


def _channels_first(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(image.transpose(2, 0, 1))


def _timm_policy(text: str, image_size: int, interpolation: Interpolation) -> Callable[[Image.Image], Image.Image]:
    from timm.data import auto_augment

    # The parameters that timm's transforms_factory hands to its policies.
    params: dict[str, Any] = {
        "translate_const": int(image_size * 0.45),
        "img_mean": tuple(min(255, round(255 * mean)) for mean in IMAGENET_MEAN),
    }
    if interpolation != "random":
        params["interpolation"] = _FILTERS[interpolation][0]
    try:
        if text.startswith("rand"):
            policy = auto_augment.rand_augment_transform(text, params)
        elif text.startswith("augmix"):
            policy = auto_augment.augment_and_mix_transform(text, {**params, "translate_pct": 0.3})
        else:
            policy = auto_augment.auto_augment_transform(text, params)
    except (AssertionError, KeyError, ValueError) as error:
        raise UserError(f"rand_augment: timm does not know the policy {text!r}; try rand-m10-mstd0.5-inc1") from error
    _repair_posterize(policy)
    return policy


def _repair_posterize(policy: Any) -> None:
    """Let timm's operations ask for 0 bits, as its strongest posterize does: a black picture until Pillow 12.

    Pillow 13 raises instead, which would end a run at a random step.
    """
    from timm.data import auto_augment

    operations = getattr(policy, "ops", None) or [op for pair in policy.policy for op in pair]
    for operation in operations:
        if operation.aug_fn is auto_augment.posterize:
            operation.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    if bits < 1:
        return Image.new(image.mode, image.size)
    return image if bits >= 8 else ImageOps.posterize(image, bits)


def _valid_scale(value: Scale) -> Scale:
    if not 0 < value[0] <= value[1] <= 1:
        raise ValueError(f"crop_scale {value} must satisfy 0 < smallest <= largest <= 1")
    return value
