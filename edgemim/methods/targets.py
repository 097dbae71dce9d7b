"""What a branch predicts: pixels of a patch, or features of a frozen teacher."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from edgemim.models.encoder import TokenMask, patchify, unpatchify
from edgemim.models.normalization import Normalization


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
class PixelTarget:
    """A patch's pixels, in the order (row, column, channel); with `normalize`, MAE's per-patch normalisation.

    Per-patch: (x - mean) / sqrt(var + 1e-6), the variance unbiased over the patch's numbers (arXiv 2111.06377).
    """

    patch_size: int
    normalize: bool = True

    @property
    def channels(self) -> int:
        """Numbers of a patch."""
        return 3 * self.patch_size**2

    def __call__(self, images: Float[Tensor, "b 3 h w"], mask: TokenMask) -> Float[Tensor, "b n c"]:
        """Patches of the images; the mask plays no part."""
        patches = patchify(images, self.patch_size)
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
        return unpatchify(prediction, self.patch_size, grid)

    @staticmethod
    def _statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
        return patches.mean(-1, keepdim=True), (patches.var(-1, keepdim=True) + 1e-6).sqrt()


@dataclass(frozen=True)
class FeatureTarget:
    """Features of a frozen teacher that sees the whole image; its grid equals the student's.

    Channels are standardised over the batch first (features after a ReLU have few, heavy channels that would own the
    loss), then each token is layer-normed without affine, so that a smooth-L1 loss has a natural scale.
    """

    teacher: nn.Module
    channels: int
    normalization: Normalization
    standardize: bool = True

    def __call__(self, images: Float[Tensor, "b 3 h w"], mask: TokenMask) -> Float[Tensor, "b n c"]:
        """The teacher's tokens; the mask plays no part."""
        features = self.teacher(self.normalization.undo(images)).float()
        if self.standardize:
            mean, std = features.mean((0, 1), keepdim=True), features.std((0, 1), keepdim=True)
            features = (features - mean) / (std + 1e-6)
        return F.layer_norm(features, features.shape[-1:])
