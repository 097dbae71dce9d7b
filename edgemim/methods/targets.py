"""What a branch predicts: pixels of a patch, or features of a frozen teacher."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from edgemim.models.encoder import TokenMask, patchify, unpatchify
from edgemim.models.normalization import IDENTITY, Normalization
from edgemim.models.sizes import EncoderSize


class Target(Protocol):
    """Computed once a batch, without gradient, and shared by the branches that name it."""

    @property
    def channels(self) -> int:
        """Numbers of a patch's target."""
        ...

    def __call__(self, images: Float[Tensor, "b 3 h w"], mask: TokenMask) -> Float[Tensor, "b n c"]:
        """The target of every patch, from normalised images."""
        ...


@dataclass(frozen=True)
class Derived:
    """A target read from something that several targets share; the model computes `source` once a batch.

    Attributes:
        source: (normalised images, mask) to anything, without gradient.
        read: from that to the target.
        channels: numbers of the target's last dimension.
    """

    source: Callable[[Tensor, TokenMask], Any]
    read: Callable[[Any], Tensor]
    channels: int

    def __call__(self, images: Float[Tensor, "b 3 h w"], mask: TokenMask) -> Tensor:
        """The target where nothing is shared."""
        return self.read(self.source(images, mask))


@dataclass(frozen=True)
class PixelTarget:
    """A patch's pixels, in the order (row, column, channel), or (channel, row, column) as Hiera's masked autoencoder
    has them; with `normalize`, MAE's per-patch normalisation.

    Per-patch: (x - mean) / sqrt(var + 1e-6), the variance unbiased over the patch's numbers (arXiv 2111.06377).
    """

    patch_size: int
    normalize: bool = True
    channels_first: bool = field(default=False, kw_only=True)

    @property
    def channels(self) -> int:
        """Numbers of a patch."""
        return 3 * self.patch_size**2

    def __call__(self, images: Float[Tensor, "b 3 h w"], mask: TokenMask) -> Float[Tensor, "b n c"]:
        """Patches of the images; the mask plays no part."""
        patches = patchify(images, self.patch_size, channels_first=self.channels_first)
        if not self.normalize:
            return patches
        mean, scale = self._statistics(patches)
        return (patches - mean) / scale

    def picture(
        self, prediction: Float[Tensor, "b n c"], images: Float[Tensor, "b 3 h w"], grid: tuple[int, int]
    ) -> Float[Tensor, "b 3 h w"]:
        """A prediction as normalised images: with per-patch normalisation undone by the true patch's statistics."""
        if self.normalize:
            mean, scale = self._statistics(patchify(images, self.patch_size))
            prediction = prediction * scale + mean
        return unpatchify(prediction, self.patch_size, grid, channels_first=self.channels_first)

    @staticmethod
    def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
        return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()


def pixel_target(size: EncoderSize, normalize: bool = True) -> PixelTarget:
    """Pixels of an encoder's patches, in the order in which its published masked autoencoder predicts them."""
    return PixelTarget(size.patch_size, normalize, channels_first=size.hierarchical)


@dataclass(frozen=True)
class LowPassTarget(PixelTarget):
    """PixMIM's (arXiv 2303.02416): pixels of the image without its high frequencies, |F^-1(disc * F(x))|.

    The disc lies around the middle of the shifted spectrum, (side - 1) / 2, half a frequency off the constant term, as
    in the published code; the filter acts on the image in [0, 1].

    Attributes:
        radius: of the disc, in cycles an image (40 at 224 pixels in the paper).
        normalization: of the images that come in.
    """

    radius: float = 40.0
    normalization: Normalization = field(default=IDENTITY)

    def __call__(self, images: Float[Tensor, "b 3 h w"], mask: TokenMask) -> Float[Tensor, "b n c"]:
        """Patches of the smoothed images."""
        return super().__call__(self.smooth(images), mask)

    def picture(
        self, prediction: Float[Tensor, "b n c"], images: Float[Tensor, "b 3 h w"], grid: tuple[int, int]
    ) -> Float[Tensor, "b 3 h w"]:
        """A prediction as normalised images, un-normalised by the smoothed patch's statistics."""
        return super().picture(prediction, self.smooth(images), grid)

    def smooth(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Normalised images without their high frequencies."""
        spectrum = torch.fft.fftshift(torch.fft.fft2(self.normalization.undo(images.float())), dim=(-2, -1))
        disc = low_pass_disc(images.shape[-2], images.shape[-1], self.radius, images.device)
        # Without the inverse shift the result only changes sign from pixel to pixel, which the absolute value undoes.
        return self.normalization.normalize(torch.fft.ifft2(spectrum * disc).abs())


def low_pass_disc(height: int, width: int, radius: float, device: torch.device | None = None) -> Bool[Tensor, "h w"]:
    """True within `radius` of the middle of a shifted spectrum."""
    rows = torch.arange(height, device=device)[:, None] - (height - 1) / 2
    columns = torch.arange(width, device=device)[None] - (width - 1) / 2
    return rows.square() + columns.square() <= radius**2


@dataclass(frozen=True)
class FeatureTarget:
    """Features of a frozen teacher that sees the whole image; its grid equals the student's.

    Channels are standardised first, over the part of the batch that this process computes at once: features after a
    ReLU have few, heavy channels that would own the loss. Then each token is layer-normed without affine, so that a
    smooth-L1 loss has a natural scale.
    """

    teacher: nn.Module
    channels: int
    normalization: Normalization
    standardize: bool = True
    layer_norm: bool = True

    def __call__(self, images: Float[Tensor, "b 3 h w"], mask: TokenMask) -> Float[Tensor, "b n c"]:
        """The teacher's tokens; the mask plays no part."""
        features = self.teacher(self.normalization.undo(images)).float()
        return normalize_features(features, standardize=self.standardize, layer_norm=self.layer_norm)


def normalize_features(
    features: Float[Tensor, "b n c"], *, standardize: bool = True, layer_norm: bool = True
) -> Float[Tensor, "b n c"]:
    """Channels standardised over the batch, then each token layer-normed without affine."""
    if standardize:
        mean, std = features.mean((0, 1), keepdim=True), features.std((0, 1), keepdim=True)
        features = (features - mean) / (std + 1e-6)
    return F.layer_norm(features, features.shape[-1:]) if layer_norm else features
