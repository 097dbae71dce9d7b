"""MaskFeat: histograms of oriented gradients of hidden blocks.

Masked Feature Prediction for Self-Supervised Visual Pre-Training, arXiv 2112.09133. 40 % of the patches are hidden in
blocks and replaced by a mask token; all pass through the encoder; its tokens, behind a norm and a linear layer, predict
the HOG of the hidden patches: mean squared error. The published head has a norm of its own in place of the encoder's
final one; the encoder's own stands there here, which is the same function.
"""

from __future__ import annotations

from typing import Literal

import pydantic
from torch import nn

from edgemim.methods.branches import MaskedImageModel, patch_branch
from edgemim.methods.decoders import DecoderConfig, LinearDecoderConfig
from edgemim.methods.hog import hog_target
from edgemim.methods.masking import BlockMasking
from edgemim.methods.method import KEEPS_HIDDEN, Method, refuse_hierarchical
from edgemim.models.encoder import Encoder
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import EncoderSize


class MaskFeatConfig(Method):
    """Masked feature prediction: oriented gradients (HOG) of hidden blocks; no patch is dropped."""

    name: Literal["maskfeat"] = "maskfeat"
    """The method."""
    mask_ratio: float = pydantic.Field(default=0.4, gt=0.0, lt=1.0)
    """Share of patches that are hidden."""
    min_block: int | None = pydantic.Field(default=None, ge=1)
    """Patches of the smallest hidden block; default 15 of 196, in proportion."""
    decoder: DecoderConfig = LinearDecoderConfig()
    """What predicts the histograms."""
    bins: int = pydantic.Field(default=9, ge=1)
    """Orientations over half a turn."""
    cells: int = pydantic.Field(default=2, ge=1)
    """Cells along a patch's side (the paper: 8 pixels each, 2 in patches of 16)."""

    def check(self, size: EncoderSize) -> None:
        """Raises UserError on a hierarchical encoder."""
        refuse_hierarchical(self.name, size, KEEPS_HIDDEN)

    def build(self, encoder: Encoder, normalization: Normalization, teacher: nn.Module | None) -> MaskedImageModel:
        """Compose the model; a teacher plays no part. Raises UserError on patches that cells do not fill."""
        self.check(encoder.config)
        size = encoder.config
        branch = patch_branch("hog", encoder, self.decoder, hog_target(size.patch_size, self.bins, cells=self.cells))
        masking = BlockMasking(ratio=self.mask_ratio, min_block=self.min_block, grid=size.grid)
        return MaskedImageModel(encoder, masking, [branch], normalization, drop=False)
