"""Histograms of oriented gradients as a target, as MaskFeat computes them (arXiv 2112.09133)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from edgemim.errors import UserError
from edgemim.models.encoder import TokenMask, patchify
from edgemim.training.precision import full_precision


@dataclass(frozen=True)
class HogTarget:
    """2 x 2 cells a patch (8 x 8 pixels each in the paper), 9 orientations, each colour apart: 108 numbers.

    In a patch they go (colour, orientation, cell's row, cell's column).

    Attributes:
        patch_size: side of a patch in pixels, a multiple of `cells`.
        bins: orientations over half a turn.
        window: side of a Gaussian window in pixels that weights the gradients, 0 for none as published
            (mmpretrain's is 16).
        cells: cells along a patch's side.
    """

    patch_size: int
    bins: int = 9
    window: int = 0
    cells: int = 2

    @property
    def channels(self) -> int:
        """Numbers of a patch."""
        return 3 * self.bins * self.cells**2

    def __call__(self, images: Float[Tensor, "b 3 h w"], mask: TokenMask) -> Float[Tensor, "b n c"]:
        """Histograms of every patch of normalised images; the mask plays no part."""
        return patchify(self.histograms(images).flatten(1, 2), self.cells, channels_first=True)

    def histograms(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 bins rows columns"]:
        """Histograms of every cell, each of Euclidean length 1 over its bins; float32, whatever the step computes in."""
        with full_precision(images.device):
            gx, gy = _sobel(images.float())
        # atan2(gx, gy), not (gy, gx), and bins modulo half a turn: the published code's convention.
        bins = (torch.atan2(gx, gy) / math.pi * self.bins).floor().long() % self.bins
        strength = torch.hypot(gx, gy) * self._weights(images)
        votes = torch.zeros(*bins.shape[:2], self.bins, *bins.shape[2:], device=images.device)
        votes.scatter_(2, bins.unsqueeze(2), strength.unsqueeze(2))
        cell = self.patch_size // self.cells
        # Sums and means of a cell differ by a factor that the normalisation takes out.
        return F.normalize(F.avg_pool2d(votes.flatten(1, 2), cell).unflatten(1, (3, self.bins)) * cell**2, dim=2)

    def _weights(self, images: Tensor) -> Tensor:
        if not self.window:
            return images.new_ones(())
        place = torch.arange(self.window, device=images.device) - (self.window - 1) / 2
        row = torch.exp(-0.5 * (place / (self.window // 2)).square())
        row = row / row.sum()
        height, width = images.shape[-2:]
        return torch.outer(row.repeat(height // self.window), row.repeat(width // self.window))


def hog_target(patch_size: int, bins: int = 9, window: int = 0, cells: int = 2) -> HogTarget:
    """The target for an encoder's patches. Raises UserError on patches that cells do not fill."""
    if patch_size % cells:
        raise UserError(
            f"oriented gradients cut a patch into {cells} x {cells} cells; a patch_size of {patch_size} is "
            f"{'odd' if cells == 2 else f'no multiple of {cells}'}"
        )
    return HogTarget(patch_size, bins, window, cells)


def _sobel(images: Float[Tensor, "b 3 h w"]) -> tuple[Tensor, Tensor]:
    """Horizontal (left minus right) and vertical gradients of each colour, reflected at the border."""
    kernel = images.new_tensor([[1.0, 0.0, -1.0], [2.0, 0.0, -2.0], [1.0, 0.0, -1.0]])
    both = torch.stack([kernel, kernel.T]).unsqueeze(1).repeat(3, 1, 1, 1)
    found = F.conv2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), both, groups=3).unflatten(1, (3, 2))
    return found[:, :, 0], found[:, :, 1]
