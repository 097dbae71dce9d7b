"""MAE and MAE-Lite: pixels of the masked patches from the encoder's last block.

Masked Autoencoders Are Scalable Vision Learners, arXiv 2111.06377; A Closer Look at Self-Supervised Lightweight Vision
Transformers, arXiv 2205.14443 (the decoder of 96 x 1). Loss: mean over masked patches of the squared error to the
patch's pixels, normalised per patch.
"""

from __future__ import annotations

from typing import Literal

import pydantic
from torch import nn

from edgemim.methods.branches import Branch, MaskedImageModel, patch_branch
from edgemim.methods.decoders import DecoderConfig, TransformerDecoderConfig
from edgemim.methods.masking import RandomMasking
from edgemim.methods.method import Method
from edgemim.methods.targets import Target, pixel_target
from edgemim.models.encoder import Encoder
from edgemim.models.normalization import Normalization


class MaeConfig(Method):
    """Masked autoencoder: predict the pixels of hidden patches."""

    name: Literal["mae"] = "mae"
    """The method."""
    mask_ratio: float = pydantic.Field(default=0.75, gt=0.0, lt=1.0)
    """Share of patches that are hidden."""
    norm_pix_loss: bool = True
    """Normalise each target patch by its own mean and deviation."""
    decoder: DecoderConfig = TransformerDecoderConfig()
    """What predicts the pixels."""

    def build(self, encoder: Encoder, normalization: Normalization, teacher: nn.Module | None) -> MaskedImageModel:
        """Compose the model; a teacher plays no part."""
        branch = pixel_branch(encoder, self.decoder, self.norm_pix_loss, weight=1.0)
        return MaskedImageModel(encoder, RandomMasking(ratio=self.mask_ratio), [branch], normalization)


def pixel_branch(
    encoder: Encoder,
    decoder: DecoderConfig,
    norm_pix_loss: bool,
    weight: float,
    *,
    neck: nn.Module | None = None,
    target: Target | None = None,
) -> Branch:
    """MAE's branch: the last block's tokens (or what another neck reads) to the masked patches' pixels."""
    target = target or pixel_target(encoder.config, norm_pix_loss)
    return patch_branch("pixel", encoder, decoder, target, neck=neck, weight=weight)
