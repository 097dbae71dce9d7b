"""PixMIM: MAE on pixels without their high frequencies.

PixMIM: Rethinking Pixel Reconstruction in Masked Image Modeling, arXiv 2303.02416. Target: |F^-1(M_r * F(x))|, M_r a
disc of radius 40 at 224 pixels, then MAE's patches and per-patch normalisation. The paper's other half is the crop:
`transform.crop: simple_resized`.
"""

from __future__ import annotations

from typing import Literal

import pydantic
from torch import nn

from edgemim.methods.branches import MaskedImageModel
from edgemim.methods.decoders import DecoderConfig, TransformerDecoderConfig
from edgemim.methods.mae import pixel_branch
from edgemim.methods.masking import RandomMasking
from edgemim.methods.method import Method
from edgemim.methods.targets import LowPassTarget
from edgemim.models.encoder import Encoder
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import EncoderSize

_RADIUS_PER_PIXEL = 40 / 224


class PixMimConfig(Method):
    """Masked autoencoder that predicts smoothed pixels; its paper crops with --transform.crop simple_resized."""

    name: Literal["pixmim"] = "pixmim"
    """The method."""
    mask_ratio: float = pydantic.Field(default=0.75, gt=0.0, lt=1.0)
    """Share of patches that are hidden."""
    radius: float | None = pydantic.Field(default=None, gt=0)
    """Cycles an image that the target keeps; default 40 for every 224 pixels."""
    norm_pix_loss: bool = True
    """Normalise each target patch by its own mean and deviation."""
    decoder: DecoderConfig = TransformerDecoderConfig()
    """What predicts the pixels."""

    def build(self, encoder: Encoder, normalization: Normalization, teacher: nn.Module | None) -> MaskedImageModel:
        """Compose the model; a teacher plays no part."""
        target = low_pass_target(encoder.config, normalization, self.norm_pix_loss, self.radius)
        branch = pixel_branch(encoder, self.decoder, self.norm_pix_loss, 1.0, target=target)
        return MaskedImageModel(encoder, RandomMasking(ratio=self.mask_ratio), [branch], normalization)


def low_pass_target(
    size: EncoderSize, normalization: Normalization, norm_pix_loss: bool, radius: float | None
) -> LowPassTarget:
    """Smoothed pixels for an encoder's patches."""
    chosen = _RADIUS_PER_PIXEL * size.image_size if radius is None else radius
    return LowPassTarget(size.patch_size, norm_pix_loss, chosen, normalization, channels_first=size.hierarchical)
