"""Targets that a branch of a composed method may name in YAML, each with the part that predicts it if no decoder does."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from typing import Annotated, Any, ClassVar, Literal

import pydantic
from torch import nn

from edgemim.config import Config, Presets
from edgemim.errors import UserError
from edgemim.methods.branches import LossName
from edgemim.methods.deepmim import PixelsAndReconstruction
from edgemim.methods.distill import (
    BlockLogits,
    ExtraLogits,
    HeadMixer,
    HiddenAdapter,
    SameHeads,
    TeacherPass,
    check_maps,
    check_tokens,
)
from edgemim.methods.hog import hog_target
from edgemim.methods.img2vec import ClassTokenHead, mean_token
from edgemim.methods.method import TeacherKind
from edgemim.methods.pixmim import low_pass_target
from edgemim.methods.reconstruction import FrozenReconstruction
from edgemim.methods.targets import Derived, FeatureTarget, Target, normalize_features, pixel_target
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import EncoderSize
from edgemim.teachers import MaskedTeacher


class NamedTarget(Config):
    """Base of the targets' configurations.

    Attributes:
        teacher_kind: what it reads of a teacher.
        usual_loss: the loss where a branch names none.
        patchwise: whether a decoder predicts it for every patch; else a part of its own (`predictor`) predicts it, and
            it is scored as a whole.
    """

    teacher_kind: ClassVar[TeacherKind] = "none"
    usual_loss: ClassVar[LossName] = "mse"
    patchwise: ClassVar[bool] = True

    def build(self, kit: Kit) -> Target:
        """The target for a student and a teacher. Raises UserError on what does not fit."""
        raise NotImplementedError

    def predictor(self, tap: int, kit: Kit) -> nn.Module:
        """What predicts it from a block of the student. Raises UserError on what does not fit."""
        raise NotImplementedError


class PixelTargetConfig(NamedTarget):
    """A patch's pixels (MAE, arXiv 2111.06377)."""

    name: Literal["pixel"] = "pixel"
    """The target."""
    normalize: bool = True
    """Normalise each patch by its own mean and deviation."""

    def build(self, kit: Kit) -> Target:
        """Pixels of the student's patches."""
        return pixel_target(kit.size, self.normalize)


class LowPassTargetConfig(NamedTarget):
    """Pixels without their high frequencies (PixMIM, arXiv 2303.02416)."""

    name: Literal["low_pass"] = "low_pass"
    """The target."""
    normalize: bool = True
    """Normalise each patch by its own mean and deviation."""
    radius: float | None = pydantic.Field(default=None, gt=0)
    """Cycles an image that are kept; default 40 for every 224 pixels."""

    def build(self, kit: Kit) -> Target:
        """Smoothed pixels of the student's patches."""
        return low_pass_target(kit.size, kit.normalization, self.normalize, self.radius)


class HogTargetConfig(NamedTarget):
    """Histograms of oriented gradients (MaskFeat, arXiv 2112.09133)."""

    name: Literal["hog"] = "hog"
    """The target."""
    bins: int = pydantic.Field(default=9, ge=1)
    """Orientations over half a turn."""
    window: int = pydantic.Field(default=0, ge=0)
    """Side of a Gaussian window in pixels that weights the gradients; 0 for none, as published."""

    def build(self, kit: Kit) -> Target:
        """Histograms of the student's patches. Raises UserError on patches or windows that do not divide."""
        if self.window and kit.size.image_size % self.window:
            raise UserError(
                f"target hog: windows of {self.window} pixels do not fill {kit.size.image_size}; set 'window' 0"
            )
        return hog_target(kit.size.patch_size, self.bins, self.window)


class FeatureTargetConfig(NamedTarget):
    """Features of a frozen teacher for every patch, from the whole image (--teacher NAME)."""

    name: Literal["features"] = "features"
    """The target."""
    standardize: bool = True
    """Standardise the teacher's channels over the batch."""
    layer_norm: bool = True
    """Then normalise each token, without affine."""

    teacher_kind: ClassVar[TeacherKind] = "features"
    usual_loss: ClassVar[LossName] = "smooth_l1"

    def build(self, kit: Kit) -> Target:
        """The teacher's tokens."""
        read = partial(normalize_features, standardize=self.standardize, layer_norm=self.layer_norm)
        return Derived(kit.features, read, kit.features.channels)


class GlobalTargetConfig(NamedTarget):
    """The mean of a teacher's features over the image, from the class token behind an MLP (as in our Img2Vec)."""

    name: Literal["global"] = "global"
    """The target."""

    teacher_kind: ClassVar[TeacherKind] = "features"
    usual_loss: ClassVar[LossName] = "cosine"
    patchwise: ClassVar[bool] = False

    def build(self, kit: Kit) -> Target:
        """One vector an image."""
        return Derived(kit.features, mean_token, kit.features.channels)

    def predictor(self, tap: int, kit: Kit) -> nn.Module:
        """The MLP."""
        return ClassTokenHead(tap, kit.size.width_at(tap), kit.features.channels)


class BlendTargetConfig(NamedTarget):
    """share * pixels + (1 - share) * what a frozen masked autoencoder fills in, both normalised per patch (DeepMIM's
    hybrid, arXiv 2303.08817); --teacher checkpoint --teacher.path RUN_OF_MAE."""

    name: Literal["blend"] = "blend"
    """The target."""
    share: float = pydantic.Field(default=0.5, ge=0, le=1)
    """Share of the true pixels."""

    teacher_kind: ClassVar[TeacherKind] = "reconstruction"

    def build(self, kit: Kit) -> Target:
        """The blend for the student's patches."""
        return kit.reconstruction.blend(self.share)


class AttentionTargetConfig(NamedTarget):
    """A teacher's attention logits q k^T / sqrt(d) over the student's visible patches (D-MAE, arXiv 2205.14443)."""

    name: Literal["attention"] = "attention"
    """The target."""
    block: int | None = pydantic.Field(default=None, ge=1)
    """Block of the teacher; default the last."""
    adapter: bool = True
    """Predict each head of the teacher as a linear combination of the student's; false compares head by head."""
    extra_block: bool = False
    """Predict from queries and keys of one block more, behind the branch's tap, which is thrown away (D2-MAE)."""

    teacher_kind: ClassVar[TeacherKind] = "masked"
    patchwise: ClassVar[bool] = False

    def build(self, kit: Kit) -> Target:
        """Logits of the teacher's block."""
        return kit.teacher_pass.logits(kit.taught(self.block, first=1))

    def predictor(self, tap: int, kit: Kit) -> nn.Module:
        """The student's logits, its heads mixed into the teacher's. Raises UserError on other heads without adapter."""
        block = kit.taught(self.block, first=1)
        ours, theirs = kit.size.heads_at(tap), kit.masked.config.heads_at(block)
        check_maps(kit.masked.config, [block], "the teacher")
        check_tokens(kit.size, kit.masked.config, [(tap, block)])
        source = ExtraLogits(tap, kit.size.width_at(tap), ours) if self.extra_block else BlockLogits(tap)
        if self.adapter:
            return HeadMixer(source, ours, theirs)
        if ours != theirs:
            raise UserError(
                f"target attention compares head by head, but the student has {ours} heads and the teacher {theirs}; "
                "set 'adapter' to true"
            )
        return SameHeads(source)


class HiddenTargetConfig(NamedTarget):
    """A teacher's tokens after a block, over the student's visible patches, through a linear adapter."""

    name: Literal["hidden"] = "hidden"
    """The target."""
    block: int | None = pydantic.Field(default=None, ge=0)
    """Block of the teacher (0: its embeddings); default the last."""

    teacher_kind: ClassVar[TeacherKind] = "masked"
    patchwise: ClassVar[bool] = False

    def build(self, kit: Kit) -> Target:
        """Tokens of the teacher."""
        return kit.teacher_pass.hidden(kit.taught(self.block, first=0))

    def predictor(self, tap: int, kit: Kit) -> nn.Module:
        """The student's tokens through the adapter."""
        block = kit.taught(self.block, first=0)
        check_tokens(kit.size, kit.masked.config, [(tap, block)])
        return HiddenAdapter(tap, kit.size.width_at(tap), kit.masked.config.width_at(block))


class Kit:
    """A student and its teacher, and what several targets read of them, each made once.

    The teacher is of the kind that the targets need; `edgemim.methods.composed` sees to that.
    """

    def __init__(
        self,
        size: EncoderSize,
        normalization: Normalization,
        teacher: nn.Module | None,
        targets: Sequence[NamedTarget],
    ) -> None:
        self.size, self.normalization, self.teacher = size, normalization, teacher
        self._targets = targets
        self._built: dict[NamedTarget, Target] = {}

    def target(self, config: NamedTarget) -> Target:
        """The target of a configuration; equal ones are one, computed once a batch."""
        if config not in self._built:
            self._built[config] = config.build(self)
        return self._built[config]

    @cached_property
    def features(self) -> FeatureTarget:
        """The teacher's features as they are."""
        teacher: Any = self.teacher
        return FeatureTarget(teacher, int(teacher.channels), self.normalization, standardize=False, layer_norm=False)

    @cached_property
    def reconstruction(self) -> PixelsAndReconstruction:
        """Pixels of a batch, true and filled in."""
        assert isinstance(self.teacher, FrozenReconstruction)
        return PixelsAndReconstruction(pixel_target(self.size), self.teacher, self.normalization)

    @property
    def masked(self) -> MaskedTeacher:
        """The teacher on the student's visible patches."""
        assert isinstance(self.teacher, MaskedTeacher)
        return self.teacher

    @cached_property
    def teacher_pass(self) -> TeacherPass:
        """One pass of that teacher over all blocks that targets name."""
        hidden = {self.taught(t.block, first=0) for t in self._targets if isinstance(t, HiddenTargetConfig)}
        attention = {self.taught(t.block, first=1) for t in self._targets if isinstance(t, AttentionTargetConfig)}
        return TeacherPass(self.masked, self.normalization, tuple(sorted(hidden)), tuple(sorted(attention)))

    def taught(self, block: int | None, *, first: int) -> int:
        """The teacher's block that a target names. Raises UserError if it is not there."""
        depth = self.masked.config.depth
        if block is not None and block > depth:
            raise UserError(f"'target.block' {block} is not there; the teacher has blocks {first} to {depth}")
        return depth if block is None else block


TargetConfig = Annotated[
    PixelTargetConfig
    | LowPassTargetConfig
    | HogTargetConfig
    | FeatureTargetConfig
    | GlobalTargetConfig
    | BlendTargetConfig
    | AttentionTargetConfig
    | HiddenTargetConfig,
    pydantic.Field(discriminator="name"),
    Presets(
        {
            "pixel": PixelTargetConfig(),
            "low_pass": LowPassTargetConfig(),
            "hog": HogTargetConfig(),
            "features": FeatureTargetConfig(),
            "global": GlobalTargetConfig(),
            "blend": BlendTargetConfig(),
            "attention": AttentionTargetConfig(),
            "hidden": HiddenTargetConfig(),
        }
    ),
]
