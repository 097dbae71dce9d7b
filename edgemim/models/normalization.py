"""From uint8 pixels to what a model reads, on the model's device."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor


@dataclass(frozen=True)
class Normalization:
    """Mean and deviation of a channel, on the scale of pixels in [0, 1]; every model input passes through it."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def apply(self, images: Tensor) -> Float[Tensor, "b 3 h w"]:
        """uint8 [b, 3, h, w] to normalised float32."""
        return self.normalize(images.float() / 255)

    def normalize(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Images in [0, 1] to normalised ones."""
        mean, std = self._columns(images)
        return (images - mean) / std

    def undo(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        """Normalised images back to [0, 1] (reconstructions may leave that range)."""
        mean, std = self._columns(images)
        return images * std + mean

    def _columns(self, images: Tensor) -> tuple[Tensor, Tensor]:
        return _column(self.mean, images.device), _column(self.std, images.device)


def _column(values: tuple[float, ...], device: torch.device) -> Float[Tensor, "1 3 1 1"]:
    # Filled where it is used: a tensor made of host numbers is copied, and the copy makes the step wait for the GPU.
    return torch.cat([torch.full((1, 1, 1, 1), value, device=device) for value in values], dim=1)


IDENTITY = Normalization((0.0, 0.0, 0.0), (1.0, 1.0, 1.0))
"""For inputs that are normalised already."""
