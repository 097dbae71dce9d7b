"""Crops of a pair as OSTrack trains on them: jittered search region, joint grey and mirror, brightness; all from a key."""

from __future__ import annotations

import math
import random

import numpy as np
import pydantic
from PIL import Image

from edgemim.config import Config
from edgemim.data.tracking.pairs import PairCrops
from edgemim.data.views import Distortion
from edgemim.edge.tracking.boxes import Box
from edgemim.edge.tracking.crop import Crop, crop_square

_TRIES = 10
_GREY = np.array([0.299, 0.587, 0.114], np.float32)


class PairTransform(Config):
    """Augmentation of tracking pairs; the defaults are OSTrack's (arXiv 2203.11991 and its published code)."""

    center_jitter: float = pydantic.Field(default=3.0, ge=0)
    """Largest shift of the search region's centre, both ways together, over the geometric mean of the box's sides."""
    scale_jitter: float = pydantic.Field(default=0.25, ge=0)
    """Deviation of the logarithm by which the search region's box is stretched on each axis."""
    grey_probability: float = pydantic.Field(default=0.05, ge=0, le=1)
    """Probability that both crops lose their colour."""
    flip_probability: float = pydantic.Field(default=0.5, ge=0, le=1)
    """Probability that both crops are mirrored."""
    crop_flip_probability: float = pydantic.Field(default=0.5, ge=0, le=1)
    """Probability that a crop is mirrored once more, each by itself."""
    brightness: float = pydantic.Field(default=0.2, ge=0, lt=1)
    """Largest relative change of a crop's brightness, each by itself."""
    still_distortion: Distortion | None = None
    """Further changes of colour and sharpness of the search region where both crops are of one picture; none as
    published."""

    def build(self, sizes: tuple[int, int], factors: tuple[float, float]) -> KeyedPairTransform:
        """The transform to crops of these sizes in pixels and these factors of the box's side, template's first."""
        return KeyedPairTransform(self, sizes, factors)

    def without_chance(self) -> PairTransform:
        """What held-out pairs are measured with: the jitter of the search region alone."""
        still = {"grey_probability": 0, "flip_probability": 0, "crop_flip_probability": 0, "brightness": 0}
        return self.model_copy(update={**still, "still_distortion": None})


class KeyedPairTransform:
    """(template picture and box, search picture and box, numbers) -> crops; None where no crop shows any of the picture.

    Boxes are those of the crop's own pixels; its corner is a whole one of the picture's, as when tracking.
    """

    def __init__(self, config: PairTransform, sizes: tuple[int, int], factors: tuple[float, float]) -> None:
        self.config, self.sizes, self.factors = config, sizes, factors

    def __call__(
        self, template: tuple[np.ndarray, Box], search: tuple[np.ndarray, Box], rng: random.Random, *, still: bool
    ) -> PairCrops | None:
        """Two pictures uint8 [h, w, 3]; `still` says that both are the same."""
        grey = rng.random() < self.config.grey_probability
        mirrored = rng.random() < self.config.flip_probability
        first = _cut(*template, template[1], self.factors[0], self.sizes[0])
        second = self._search(*search, rng)
        if first is None or second is None:
            return None
        pixels, boxes = [], []
        for number, (crop, box) in enumerate((first, second)):
            distortion = self.config.still_distortion if still and number else None
            shown, flipped = self._coloured(crop.pixels, rng, grey, distortion)
            if mirrored != flipped:
                shown, box = shown[:, ::-1], np.array([1 - box[0] - box[2], *box[1:]], np.float32)
            pixels.append(np.ascontiguousarray(shown.transpose(2, 0, 1)))
            boxes.append(box)
        return PairCrops(*pixels, *boxes)

    def _search(self, image: np.ndarray, box: Box, rng: random.Random) -> tuple[Crop, np.ndarray] | None:
        for _ in range(_TRIES):
            jittered = jitter_box(box, self.config.center_jitter, self.config.scale_jitter, rng)
            found = _cut(image, box, jittered, self.factors[1], self.sizes[1])
            if found is not None:
                return found
        return None

    def _coloured(
        self, pixels: np.ndarray, rng: random.Random, grey: bool, distortion: Distortion | None
    ) -> tuple[np.ndarray, bool]:
        """The crop in its new colours, and whether it is to be mirrored by itself."""
        if grey:
            pixels = np.repeat(np.rint(pixels @ _GREY)[..., None], 3, axis=2).astype(np.uint8)
        if distortion is not None:
            pixels = np.asarray(distortion.apply(Image.fromarray(pixels), random.Random(rng.getrandbits(63))))
        amount = rng.uniform(1 - self.config.brightness, 1 + self.config.brightness)
        if amount != 1:
            pixels = np.rint(np.clip(pixels * np.float32(amount), 0, 255)).astype(np.uint8)
        return pixels, rng.random() < self.config.crop_flip_probability


def jitter_box(box: Box, center_jitter: float, scale_jitter: float, rng: random.Random) -> Box:
    """A box near `box`: each side times exp(normal · scale_jitter), then the centre shifted on each axis by up to half of
    center_jitter · sqrt(new width · new height), evenly (OSTrack's published code)."""
    width = box.width * math.exp(rng.gauss(0, 1) * scale_jitter)
    height = box.height * math.exp(rng.gauss(0, 1) * scale_jitter)
    reach = center_jitter * math.sqrt(width * height)
    x = box.left + 0.5 * box.width + reach * (rng.random() - 0.5)
    y = box.top + 0.5 * box.height + reach * (rng.random() - 0.5)
    return Box(x - 0.5 * width, y - 0.5 * height, width, height)


def _cut(image: np.ndarray, box: Box, around: Box, factor: float, size: int) -> tuple[Crop, np.ndarray] | None:
    """The crop around a box and, over its side, `box` in it; None where nothing of the picture is in the crop."""
    crop = crop_square(image, around, factor, size)
    height, width = image.shape[:2]
    if min(crop.left + crop.side, width) <= max(crop.left, 0) or min(crop.top + crop.side, height) <= max(crop.top, 0):
        return None
    corner = np.array([crop.left, crop.top, 0, 0])
    return crop, ((np.array(box) - corner) / crop.side).astype(np.float32)
