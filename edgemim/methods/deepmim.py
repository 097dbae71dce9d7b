"""DeepMIM: every second half's stage of the encoder predicts the target, each through a decoder of its own.

DeepMIM: Deep Supervision for Masked Image Modeling, arXiv 2303.08817. Taps after blocks L/2, 2L/3, 5L/6 and L (6, 8, 10,
12), the first three without a norm, the last behind the encoder's; L = sum_g w_g l_g, w_g = 1. Targets: MAE's pixels;
hybrid: alpha_g x + (1 - alpha_g) x', x' the pixels that a frozen masked autoencoder fills in from the same visible
patches, alpha_g = g / (G - 1), shallow to deep; or a teacher's features with 2 - 2 cos (DeepMIM-CLIP). The authors
released the last only: pixels and hybrid follow the paper, and that the blend is of per-patch normalised pixels, in
which a masked autoencoder predicts, is ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Literal

import pydantic
from jaxtyping import Float
from torch import Tensor, nn

from edgemim.errors import UserError
from edgemim.methods.branches import MaskedImageModel, patch_branch
from edgemim.methods.decoders import DecoderConfig, TransformerDecoderConfig
from edgemim.methods.masking import RandomMasking
from edgemim.methods.method import Method, TeacherKind, check_on_grid, rising_blocks
from edgemim.methods.reconstruction import FrozenReconstruction, reconstruction_teacher
from edgemim.methods.targets import Derived, FeatureTarget, PixelTarget, Target, pixel_target
from edgemim.models.encoder import Encoder, TokenMask
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import EncoderSize
from edgemim.teachers import CheckpointTeacher, EfficientNetLiteTeacher, TimmTeacher


class DeepMimConfig(Method):
    """Deep supervision: several blocks predict the target, each with its own decoder."""

    name: Literal["deepmim"] = "deepmim"
    """The method."""
    mask_ratio: float = pydantic.Field(default=0.75, gt=0.0, lt=1.0)
    """Share of patches that are hidden."""
    target: Literal["pixel", "hybrid", "feature"] = "pixel"
    """hybrid blends pixels with those of a pre-trained MAE (--teacher checkpoint --teacher.path RUN), the more the
    shallower the block; feature takes those of --teacher."""
    taps: tuple[int, ...] = ()
    """Blocks that predict, shallow to deep; default 1/2, 2/3, 5/6 and all of the depth."""
    weights: tuple[float, ...] = ()
    """Weights of their losses; default 1 each."""
    norm_pix_loss: bool = True
    """Normalise each target patch by its own mean and deviation; hybrid always does."""
    decoder: DecoderConfig = TransformerDecoderConfig()
    """What predicts, one for each block (the paper: 512 wide, 4 blocks, 16 heads)."""

    @property
    def teacher_kind(self) -> TeacherKind:
        """What the target asks for."""
        kinds: dict[str, TeacherKind] = {"pixel": "none", "hybrid": "reconstruction", "feature": "features"}
        return kinds[self.target]

    def check(self, size: EncoderSize) -> None:
        """Raises UserError on blocks that are not there, or after which a patch is several tokens."""
        check_on_grid(self.name, size, deep_taps(size.depth, self.taps))

    def build_teacher(
        self, teacher: TimmTeacher | CheckpointTeacher | EfficientNetLiteTeacher, size: EncoderSize
    ) -> nn.Module:
        """The frozen teacher; for hybrid, a run of MAE with its decoder. Raises UserError on one that does not fit."""
        if self.target != "hybrid":
            return super().build_teacher(teacher, size)
        return reconstruction_teacher(teacher, size)

    def build(self, encoder: Encoder, normalization: Normalization, teacher: nn.Module | None) -> MaskedImageModel:
        """Compose the model. Raises UserError without the teacher that the target needs, or on odd taps."""
        size = encoder.config
        self.check(size)
        taps, weights = deep_taps(size.depth, self.taps), self.weights
        if weights and len(weights) != len(taps):
            raise UserError(f"'weights' has {len(weights)} numbers for {len(taps)} blocks {list(taps)}")
        targets = self._targets(size, normalization, teacher, len(taps))
        loss = "cosine" if self.target == "feature" else "mse"
        parts = list(zip(taps, weights or (1.0,) * len(taps), targets, strict=True))
        # Deepest first: the picture of a reconstruction is the first pixel branch's.
        branches = [
            patch_branch(f"block_{tap}", encoder, self.decoder, target, tap=tap, loss=loss, weight=weight)
            for tap, weight, target in reversed(parts)
        ]
        return MaskedImageModel(encoder, RandomMasking(ratio=self.mask_ratio), branches, normalization)

    def _targets(
        self, size: EncoderSize, normalization: Normalization, teacher: nn.Module | None, count: int
    ) -> Sequence[Target]:
        if self.target == "pixel":
            return [pixel_target(size, self.norm_pix_loss)] * count
        if teacher is None:
            what = (
                "a run of MAE (--teacher checkpoint --teacher.path RUN)"
                if self.target == "hybrid"
                else "--teacher NAME"
            )
            raise UserError(f"method deepmim with target {self.target} needs a teacher; give {what}")
        if self.target == "hybrid":
            assert isinstance(teacher, FrozenReconstruction)
            return hybrid_targets(size, normalization, teacher, count)
        return [FeatureTarget(teacher, int(teacher.channels), normalization, False, False)] * count  # pyright: ignore[reportArgumentType]


def deep_taps(depth: int, taps: tuple[int, ...] = ()) -> tuple[int, ...]:
    """The given blocks, else 1/2, 2/3, 5/6 and all of the depth, each once. Raises UserError on blocks out of order."""
    chosen = taps or tuple(sorted({max(1, round(depth * part / 6)) for part in (3, 4, 5, 6)}))
    rising_blocks("taps", chosen, depth)
    return chosen


@dataclass(frozen=True)
class PixelsAndReconstruction:
    """Normalised patches of a batch, true and filled in; computed once for all blends."""

    pixels: PixelTarget
    model: FrozenReconstruction
    normalization: Normalization

    def __call__(self, images: Float[Tensor, "b 3 h w"], mask: TokenMask) -> tuple[Tensor, Tensor]:
        """Both as [b, n, c]."""
        return self.pixels(images, mask), self.model(self.normalization.undo(images), mask)

    def blend(self, share: float) -> Target:
        """share * pixels + (1 - share) * reconstruction, both normalised per patch."""
        return self.pixels if share == 1 else Derived(self, partial(_blend, share=share), self.pixels.channels)


def hybrid_targets(
    size: EncoderSize, normalization: Normalization, model: FrozenReconstruction, count: int
) -> list[Target]:
    """Blends from all reconstruction (the shallowest) to all pixels (the deepest)."""
    source = PixelsAndReconstruction(pixel_target(size), model, normalization)
    return [source.blend(1.0 if count == 1 else g / (count - 1)) for g in range(count)]


def _blend(both: tuple[Tensor, Tensor], share: float) -> Tensor:
    pixels, reconstruction = both
    return share * pixels + (1 - share) * reconstruction
