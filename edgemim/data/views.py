"""Several independently cropped and distorted views of an image, from its key alone, for methods that compare views."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np
import pydantic
import torchvision.transforms.functional as F
from PIL import Image, ImageFilter, ImageOps

from edgemim.config import Config
from edgemim.data.transforms import KeyedTransform


class Distortion(Config):
    """Changes of colour and sharpness; the defaults are those of BYOL's first view (arXiv 2006.07733, appendix B).

    Applied in this order, each with its probability: colour jitter, grey, blur, solarize.
    """

    jitter_probability: float = pydantic.Field(default=0.8, ge=0, le=1)
    """Probability of changing brightness, contrast, saturation and hue, in random order."""
    brightness: float = pydantic.Field(default=0.4, ge=0)
    """Largest relative change of brightness."""
    contrast: float = pydantic.Field(default=0.4, ge=0)
    """Largest relative change of contrast."""
    saturation: float = pydantic.Field(default=0.2, ge=0)
    """Largest relative change of saturation."""
    hue: float = pydantic.Field(default=0.1, ge=0, le=0.5)
    """Largest change of hue, as a share of the colour circle."""
    grey_probability: float = pydantic.Field(default=0.2, ge=0, le=1)
    """Probability of losing all colour."""
    blur_probability: float = pydantic.Field(default=1.0, ge=0, le=1)
    """Probability of a Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Smallest and largest width of the blur, in pixels of the crop."""
    solarize_probability: float = pydantic.Field(default=0.0, ge=0, le=1)
    """Probability of inverting the brighter half of each channel's values."""

    @pydantic.field_validator("blur_sigma")
    @classmethod
    def _check_sigma(cls, value: tuple[float, float]) -> tuple[float, float]:
        if not 0 <= value[0] <= value[1]:
            raise ValueError(f"blur_sigma {value} must satisfy 0 <= smallest <= largest")
        return value

    def apply(self, image: Image.Image, rng: random.Random) -> Image.Image:
        """The distorted image, from the generator's numbers alone."""
        if rng.random() < self.jitter_probability:
            image = self._jitter(image, rng)
        if rng.random() < self.grey_probability:
            image = ImageOps.grayscale(image).convert("RGB")
        if rng.random() < self.blur_probability:
            image = image.filter(ImageFilter.GaussianBlur(rng.uniform(*self.blur_sigma)))
        if rng.random() < self.solarize_probability:
            image = ImageOps.solarize(image)
        return image

    def _jitter(self, image: Image.Image, rng: random.Random) -> Image.Image:
        changes = [
            (F.adjust_brightness, _factor(self.brightness, rng)),
            (F.adjust_contrast, _factor(self.contrast, rng)),
            (F.adjust_saturation, _factor(self.saturation, rng)),
            (F.adjust_hue, rng.uniform(-self.hue, self.hue)),
        ]
        rng.shuffle(changes)
        for change, amount in changes:
            image = change(image, amount)
        return image


def _factor(strength: float, rng: random.Random) -> float:
    return rng.uniform(max(0.0, 1 - strength), 1 + strength)


class Views:
    """A keyed transform to several views of an image: uint8 [h, w, 3] in, uint8 [views, 3, s, s] out.

    Each view is the crop under a key of its own, then one of the distortions. All of it follows from the sample's key.
    """

    def __init__(self, crop: KeyedTransform, distortions: Sequence[Distortion]) -> None:
        self.crop = crop
        self.distortions = tuple(distortions)

    def __call__(self, image: np.ndarray, key: int) -> np.ndarray:
        rng = random.Random(f"views/{key}")
        return np.stack([self._view(image, distortion, rng) for distortion in self.distortions])

    def _view(self, image: np.ndarray, distortion: Distortion, rng: random.Random) -> np.ndarray:
        square = self.crop(image, rng.getrandbits(63))
        picture = Image.fromarray(np.ascontiguousarray(square.transpose(1, 2, 0)))
        # A generator of its own: how many numbers one view draws does not move the next one's crop.
        distorted = distortion.apply(picture, random.Random(rng.getrandbits(63)))
        return np.asarray(distorted).transpose(2, 0, 1)


class Distorted:
    """A keyed transform whose crop is distorted: uint8 [h, w, 3] in, uint8 [3, s, s] out."""

    def __init__(self, crop: KeyedTransform, distortion: Distortion) -> None:
        self._crop = crop
        self._distortion = distortion

    def __call__(self, image: np.ndarray, key: int) -> np.ndarray:
        picture = Image.fromarray(np.ascontiguousarray(self._crop(image, key).transpose(1, 2, 0)))
        distorted = self._distortion.apply(picture, random.Random(f"distort/{key}"))
        return np.ascontiguousarray(np.asarray(distorted).transpose(2, 0, 1))
