"""MAE with a second branch: features of a frozen teacher for every patch, visible and masked.

The branch form of feature distillation in masked image modeling (as in MaskFeat, arXiv 2112.09133, and the feature
targets of DeepMIM, arXiv 2303.08817); the choice of standardised, layer-normed targets with a smooth-L1 loss on all
tokens is ours. With `mask_ratio: 0` and `pixel_weight: 0` it is plain feature distillation without masking.
"""

from __future__ import annotations

from typing import Literal

import pydantic
from torch import nn

from edgemim.errors import UserError
from edgemim.methods.branches import LossName, MaskedImageModel, Score, patch_branch
from edgemim.methods.decoders import DecoderConfig, TransformerDecoderConfig
from edgemim.methods.mae import pixel_branch
from edgemim.methods.masking import RandomMasking
from edgemim.methods.method import Method, TeacherKind
from edgemim.methods.targets import FeatureTarget
from edgemim.models.encoder import Encoder
from edgemim.models.normalization import Normalization


class FeatureDistillConfig(Method):
    """Masked autoencoder plus feature distillation from a frozen teacher (give one with --teacher)."""

    name: Literal["feature_distill"] = "feature_distill"
    """The method."""
    mask_ratio: float = pydantic.Field(default=0.5, ge=0.0, lt=1.0)
    """Share of patches that are hidden; 0 distils without masking."""
    pixel_weight: float = pydantic.Field(default=0.3, ge=0.0)
    """Weight of MAE's pixel loss on the masked patches; 0 leaves the branch out."""
    feature_weight: float = pydantic.Field(default=1.0, gt=0.0)
    """Weight of the feature loss."""
    feature_loss: LossName = "smooth_l1"
    """Loss between predicted and teacher features."""
    feature_score: Score = "all"
    """Which patches count in the feature loss."""
    standardize: bool = True
    """Standardise the teacher's channels over the batch before each token is layer-normed."""
    norm_pix_loss: bool = True
    """Normalise each target patch by its own mean and deviation."""
    pixel_decoder: DecoderConfig = TransformerDecoderConfig()
    """What predicts the pixels."""
    feature_decoder: DecoderConfig = TransformerDecoderConfig()
    """What predicts the features."""

    @property
    def teacher_kind(self) -> TeacherKind:
        """Features on the student's grid."""
        return "features"

    def build(self, encoder: Encoder, normalization: Normalization, teacher: nn.Module | None) -> MaskedImageModel:
        """Compose the model. Raises UserError without a teacher, or if the masked set that a loss scores is empty."""
        if teacher is None:
            raise UserError("method feature_distill needs a teacher; give --teacher NAME (such as efficientnet_lite0)")
        if self.mask_ratio == 0 and (self.pixel_weight > 0 or self.feature_score == "masked"):
            raise UserError(
                "'mask_ratio' 0 hides nothing to predict; set 'pixel_weight' to 0 and 'feature_score' to all"
            )
        channels = int(teacher.channels)  # pyright: ignore[reportArgumentType]
        target = FeatureTarget(teacher, channels, normalization, self.standardize)
        branch = patch_branch(
            "feature",
            encoder,
            self.feature_decoder,
            target,
            loss=self.feature_loss,
            weight=self.feature_weight,
            score=self.feature_score,
        )
        branches = [branch]
        if self.pixel_weight > 0:
            branches.append(pixel_branch(encoder, self.pixel_decoder, self.norm_pix_loss, self.pixel_weight))
        return MaskedImageModel(encoder, RandomMasking(ratio=self.mask_ratio), branches, normalization)
