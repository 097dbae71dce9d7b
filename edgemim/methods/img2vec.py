"""Img2Vec-style distillation: several blocks predict a frozen teacher's features, the class token their mean.

Img2Vec: A Teacher of High Token-Diversity Helps Masked AutoEncoders, arXiv 2304.12535. No code is released and only its
abstract was at hand: each line begins with what it claims; what follows the colon is done here and our choice.

- Features of a frozen self-supervised teacher as target: any frozen teacher (--teacher). Its map meets the patch grid
  exactly, never by interpolation, which would make neighbouring targets alike: a ViT by its input size, a convolutional
  network by the stage of the patch's stride, by a larger input (--teacher.stage 4 --teacher.input-size 448 for 14×14), or
  by dilation (--teacher.output-stride 16). Where none is exact, it is refused with the sizes that are (teachers/fit.py).
- Teachers of high token diversity, a ResNet-50 better than ViT-L: `edgemim analyze token-diversity` measures and ranks them.
- (Nothing on normalisation, loss or mask): channels standardised over the batch, as few heavy ones would own the loss, then
  each token layer-normed without affine; smooth-L1 on masked patches, 75 % of them hidden at random.
- Multi-block feature learning: blocks as in DeepMIM (L/2, 2L/3, 5L/6, L), a decoder each, weights w_g of 1.
- Global semantic learning: behind the last block's class token an MLP with one hidden layer predicts the mean token,
  2 - 2 cos, with weight 0.5 (1 - cos with weight 1). The mean is that of the standardised channels: of raw ones, a
  constant answers half of it (2 - 2 cos of EfficientNet-Lite0's mean tokens to their own mean is 0.49 raw, 2.01
  standardised; 96 images of trashnet). It scores the whole image, hidden patches included.

L = sum_g w_g l_g + w l_global.
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
from edgemim.methods.method import Method, TeacherKind, check_on_grid
from edgemim.methods.targets import Derived, FeatureTarget, normalize_features
from edgemim.models.encoder import Encoder, Features, TokenMask, initialise_linear
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import EncoderSize


class ClassTokenHead(nn.Module):
    """The last block's class token, behind the final norm, through an MLP with one hidden layer.

    An encoder without a class token gives the mean of its visible patches' tokens.
    """

    def __init__(self, tap: int, width: int, out: int) -> None:
        super().__init__()
        self.taps = (tap,)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, out))
        self.mlp.apply(initialise_linear)

    def forward(self, features: Features, mask: TokenMask) -> Float[Tensor, "b 1 out"]:
        """One vector an image."""
        tokens = features.normed(self.taps[0])
        return self.mlp(tokens[:, :1] if features.prefix else tokens.mean(1, keepdim=True))


class Img2VecConfig(Method):
    """Features of a frozen teacher of diverse tokens, predicted from several blocks and as a whole (--teacher NAME)."""

    name: Literal["img2vec"] = "img2vec"
    """The method."""
    mask_ratio: float = pydantic.Field(default=0.75, gt=0.0, lt=1.0)
    """Share of patches that are hidden."""
    taps: tuple[int, ...] = ()
    """Blocks that predict features, shallow to deep; default 1/2, 2/3, 5/6 and all of the depth."""
    weights: tuple[float, ...] = ()
    """Weights of their losses; default 1 each."""
    feature_loss: LossName = "smooth_l1"
    """Loss between predicted and teacher features of a masked patch."""
    standardize: bool = True
    """Standardise the teacher's channels over the batch before each token is layer-normed."""
    global_weight: float = pydantic.Field(default=0.5, ge=0.0)
    """Weight of 2 - 2 cos between the class token's prediction and the teacher's mean token; 0 leaves it out."""
    decoder: DecoderConfig = TransformerDecoderConfig()
    """What predicts features, one for each block."""

    @property
    def teacher_kind(self) -> TeacherKind:
        """Features on the student's grid."""
        return "features"

    def check(self, size: EncoderSize) -> None:
        """Raises UserError on blocks that are not there, or after which a patch is several tokens."""
        check_on_grid(self.name, size, deep_taps(size.depth, self.taps))

    def build(self, encoder: Encoder, normalization: Normalization, teacher: nn.Module | None) -> MaskedImageModel:
        """Compose the model. Raises UserError without a teacher, or on blocks that are not there."""
        if teacher is None:
            raise UserError("method img2vec needs a teacher; give --teacher NAME (such as efficientnet_lite0)")
        self.check(encoder.config)
        size, channels = encoder.config, int(teacher.channels)  # pyright: ignore[reportArgumentType]
        raw = FeatureTarget(teacher, channels, normalization, standardize=False, layer_norm=False)
        tokens = Derived(raw, partial(normalize_features, standardize=self.standardize), channels)
        taps = deep_taps(size.depth, self.taps)
        if self.weights and len(self.weights) != len(taps):
            raise UserError(f"'weights' has {len(self.weights)} numbers for {len(taps)} blocks {list(taps)}")
        weights = dict(zip(taps, self.weights or (1.0,) * len(taps), strict=True))
        branches = [
            patch_branch(
                f"block_{tap}", encoder, self.decoder, tokens, tap=tap, loss=self.feature_loss, weight=weights[tap]
            )
            for tap in reversed(taps)
        ]
        if self.global_weight > 0:
            head, pooled = ClassTokenHead(size.depth, size.width, channels), Derived(raw, mean_token, channels)
            branches.append(Branch("global", head, pooled, "cosine", weight=self.global_weight, score="all"))
        return MaskedImageModel(encoder, RandomMasking(ratio=self.mask_ratio), branches, normalization)


def mean_token(features: Float[Tensor, "b n c"]) -> Float[Tensor, "b 1 c"]:
    """An image's mean feature, its channels standardised over the batch."""
    return normalize_features(features, layer_norm=False).mean(1, keepdim=True)
