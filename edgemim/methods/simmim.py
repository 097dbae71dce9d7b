"""SimMIM: raw pixels of hidden squares, predicted by one linear layer.

SimMIM: A Simple Framework for Masked Image Modeling, arXiv 2111.09886. 60 % of squares of 32 x 32 pixels are hidden and
replaced by a mask token; all patches pass through the encoder; L = mean over hidden pixels |y - x|, x normalised by the
data set's statistics only. The paper's ViT has relative positions and LayerScale (models/relative.py); any encoder will do.
"""

from __future__ import annotations

from typing import Literal

import pydantic
from torch import nn

from edgemim.methods.branches import MaskedImageModel, patch_branch
from edgemim.methods.decoders import DecoderConfig, LinearDecoderConfig
from edgemim.methods.masking import UnitMasking
from edgemim.methods.method import KEEPS_HIDDEN, Method, refuse_hierarchical
from edgemim.methods.targets import PixelTarget
from edgemim.models.encoder import Encoder
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import EncoderSize


class SimMimConfig(Method):
    """Raw pixels of hidden squares behind one linear layer; no patch is dropped."""

    name: Literal["simmim"] = "simmim"
    """The method."""
    mask_ratio: float = pydantic.Field(default=0.6, gt=0.0, lt=1.0)
    """Share of squares that are hidden, rounded up."""
    unit: int = pydantic.Field(default=2, ge=1)
    """Side of a square in patches (the paper: 32 pixels, 2 patches of 16)."""
    decoder: DecoderConfig = LinearDecoderConfig()
    """What predicts the pixels."""

    def check(self, size: EncoderSize) -> None:
        """Raises UserError on a hierarchical encoder."""
        refuse_hierarchical(self.name, size, KEEPS_HIDDEN)

    def build(self, encoder: Encoder, normalization: Normalization, teacher: nn.Module | None) -> MaskedImageModel:
        """Compose the model; a teacher plays no part. Raises UserError if squares do not fill the grid."""
        self.check(encoder.config)
        size = encoder.config
        target = PixelTarget(size.patch_size, normalize=False)
        branch = patch_branch("pixel", encoder, self.decoder, target, loss="l1")
        masking = UnitMasking(ratio=self.mask_ratio, unit=self.unit, grid=size.grid)
        return MaskedImageModel(encoder, masking, [branch], normalization, drop=False)
