"""Img2Vec-style distillation: several blocks predict a frozen teacher's features, the class token their mean.

Img2Vec: A Teacher of High Token-Diversity Helps Masked AutoEncoders, arXiv 2304.12535. No code is released. From the
abstract: images are turned into features by a frozen self-supervised teacher, whose tokens should be diverse (a ResNet-50
helps more than ViT-L), with multi-block feature learning and global semantic learning. Everything below is our reading:
blocks as in DeepMIM (L/2, 2L/3, 5L/6, L) with a decoder each; features standardised over the batch and layer-normed, a
smooth-L1 loss on masked patches; and behind the last block's class token an MLP with one hidden layer for the mean of the
teacher's raw features, w (2 - 2 cos). L = sum_g l_g + l_global. The global term scores the whole image, hidden patches
included. The grid of a convolutional teacher must meet the student's without interpolation, which would make
neighbouring targets alike.
"""

from __future__ import annotations

from functools import partial
from typing import Literal

import pydantic
from jaxtyping import Float
from torch import Tensor, nn

from edgemim.errors import UserError
from edgemim.methods.branches import Branch, LossName, MaskedImageModel, patch_branch
from edgemim.methods.decoders import DecoderConfig, TransformerDecoderConfig
from edgemim.methods.deepmim import deep_taps
from edgemim.methods.masking import RandomMasking
from edgemim.methods.method import Method, TeacherKind
from edgemim.methods.targets import Derived, FeatureTarget, normalize_features
from edgemim.models.encoder import Encoder, Features, TokenMask, initialise_linear
from edgemim.models.normalization import Normalization


class ClassTokenHead(nn.Module):
    """The last block's class token, behind the final norm, through an MLP with one hidden layer."""

    def __init__(self, tap: int, width: int, out: int) -> None:
        super().__init__()
        self.taps = (tap,)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, out))
        self.mlp.apply(initialise_linear)

    def forward(self, features: Features, mask: TokenMask) -> Float[Tensor, "b 1 out"]:
        """One vector an image."""
        return self.mlp(features.normed(self.taps[0])[:, :1])


class Img2VecConfig(Method):
    """Features of a frozen teacher of diverse tokens, predicted from several blocks and as a whole (--teacher NAME)."""

    name: Literal["img2vec"] = "img2vec"
    """The method."""
    mask_ratio: float = pydantic.Field(default=0.75, gt=0.0, lt=1.0)
    """Share of patches that are hidden."""
    taps: tuple[int, ...] = ()
    """Blocks that predict features, shallow to deep; default 1/2, 2/3, 5/6 and all of the depth."""
    feature_loss: LossName = "smooth_l1"
    """Loss between predicted and teacher features of a masked patch."""
    standardize: bool = True
    """Standardise the teacher's channels over the batch before each token is layer-normed."""
    global_weight: float = pydantic.Field(default=0.5, ge=0.0)
    """Weight of 2 - 2 cos between the class token's prediction and the teacher's mean feature; 0 leaves it out."""
    decoder: DecoderConfig = TransformerDecoderConfig()
    """What predicts features, one for each block."""

    @property
    def teacher_kind(self) -> TeacherKind:
        """Features on the student's grid."""
        return "features"

    def build(self, encoder: Encoder, normalization: Normalization, teacher: nn.Module | None) -> MaskedImageModel:
        """Compose the model. Raises UserError without a teacher, or on blocks that are not there."""
        if teacher is None:
            raise UserError("method img2vec needs a teacher; give --teacher NAME (such as efficientnet_lite0)")
        size, channels = encoder.config, int(teacher.channels)  # pyright: ignore[reportArgumentType]
        raw = FeatureTarget(teacher, channels, normalization, standardize=False, layer_norm=False)
        tokens = Derived(raw, partial(normalize_features, standardize=self.standardize), channels)
        branches = [
            patch_branch(f"block_{tap}", encoder, self.decoder, tokens, tap=tap, loss=self.feature_loss)
            for tap in reversed(deep_taps(size.depth, self.taps))
        ]
        if self.global_weight > 0:
            head, pooled = ClassTokenHead(size.depth, size.width, channels), Derived(raw, mean_token, channels)
            branches.append(Branch("global", head, pooled, "cosine", weight=self.global_weight, score="all"))
        return MaskedImageModel(encoder, RandomMasking(ratio=self.mask_ratio), branches, normalization)


def mean_token(features: Float[Tensor, "b n c"]) -> Float[Tensor, "b 1 c"]:
    """An image's mean feature."""
    return features.mean(1, keepdim=True)
