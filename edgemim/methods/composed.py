"""A method written as YAML: a masking and a list of branches, each a block, a decoder, a target, a loss and a score.

L = sum_b w_b * mean over the scored tokens of loss_b(decoder_b(block_b), target_b). MAE (arXiv 2111.06377), MFF
(2308.00261), PixMIM (2303.02416), DeepMIM (2303.08817), D-MAE (2205.14443), D2-MAE (2404.12210), MaskFeat (2112.09133)
and SimMIM (2111.09886) are such lists, and give the same losses and gradients as their own files. MIRL, whose decoders
read each other's levels, is not.

Written so, in a file that --method names or under a recipe's `method:`:

    name: composed
    mask_ratio: 0.75
    branches:
      - {name: deep_8, tap: 8, target: pixel}
      - {tap: 12, target: {name: attention, block: 12}, weight: 0.5}
"""

from __future__ import annotations

from collections import Counter
from typing import Literal

import pydantic
from torch import nn

from edgemim.config import Config
from edgemim.errors import UserError
from edgemim.methods.branches import Branch, LossName, MaskedImageModel, Score, patch_branch
from edgemim.methods.decoders import (
    DecoderConfig,
    Fuse,
    LinearDecoderConfig,
    Pick,
    TransformerDecoderConfig,
    final_tokens,
)
from edgemim.methods.distill import check_maps
from edgemim.methods.masking import BlockMasking, Masking, RandomMasking, UnitMasking, masking_for
from edgemim.methods.method import KEEPS_HIDDEN, Method, TeacherKind, check_on_grid, refuse_hierarchical
from edgemim.methods.named_targets import AttentionTargetConfig, Kit, NamedTarget, PixelTargetConfig, TargetConfig
from edgemim.methods.reconstruction import FrozenReconstruction, reconstruction_teacher
from edgemim.models.encoder import Encoder
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import EncoderSize
from edgemim.teachers import CheckpointTeacher, EfficientNetLiteTeacher, MaskedTeacher, TimmTeacher

_NEEDS: dict[TeacherKind, str] = {
    "features": "a teacher; give --teacher NAME (such as efficientnet_lite0)",
    "masked": "a vision transformer as teacher; give --teacher NAME (a timm ViT), or --teacher checkpoint "
    "--teacher.path RUN",
    "reconstruction": "a run of MAE as teacher; give --teacher checkpoint --teacher.path RUN",
}


class BranchConfig(Config):
    """One prediction task of a composed method."""

    name: str = pydantic.Field(default="", pattern=r"^([A-Za-z]\w*)?$")
    """What its loss is called; default the target and the block, such as pixel_8."""
    target: TargetConfig = PixelTargetConfig()
    """What is predicted."""
    tap: int | None = pydantic.Field(default=None, ge=0)
    """Block that it is predicted from (0: the embeddings); default the last."""
    fuse: tuple[int, ...] = ()
    """Several blocks instead, as MFF mixes them."""
    normed: bool | None = None
    """Whether the block's tokens pass the encoder's final norm; default only the last block's do."""
    decoder: DecoderConfig | None = None
    """What predicts; default a small transformer, or a linear layer where masked patches stay in the encoder."""
    loss: LossName | None = None
    """Distance of prediction and target; default mse, for features smooth_l1, for their mean cosine."""
    weight: float = pydantic.Field(default=1.0, ge=0)
    """Weight in the sum of losses."""
    score: Score | None = None
    """Which patches count; default the masked ones (attention, hidden and global are scored as a whole)."""

    @property
    def label(self) -> str:
        """Its name, or what it is called without one."""
        return self.name or self.target.name + (f"_{self.tap}" if self.tap is not None else "")

    @property
    def scored(self) -> Score:
        """Which patches count."""
        return self.score or ("masked" if self.target.patchwise else "all")

    @pydantic.model_validator(mode="after")
    def _check(self) -> BranchConfig:
        if hasattr(nn.ModuleDict, self.label):
            raise ValueError(f"branch '{self.label}' has a name that PyTorch uses itself; give it another 'name'")
        if self.fuse and (len(self.fuse) < 2 or list(self.fuse) != sorted(set(self.fuse)) or self.fuse[0] < 0):
            raise ValueError(f"branch '{self.label}': 'fuse' {list(self.fuse)} must be two or more blocks that rise")
        if self.fuse and (self.tap is not None or self.normed is not None):
            raise ValueError(f"branch '{self.label}' reads the blocks of 'fuse'; leave 'tap' and 'normed' out")
        if not self.target.patchwise:
            self._check_whole()
        return self

    def _check_whole(self) -> None:
        given = {"decoder": self.decoder is not None, "fuse": bool(self.fuse), "normed": self.normed is not None}
        for key in (key for key, present in given.items() if present):
            raise ValueError(
                f"branch '{self.label}' predicts {self.target.name} with an adapter of its own; leave '{key}' out"
            )
        if self.scored != "all":
            raise ValueError(
                f"branch '{self.label}': {self.target.name} is scored as a whole; leave 'score' out, or set it to all"
            )
        if isinstance(self.target, AttentionTargetConfig) and self.tap == 0:
            raise ValueError(
                f"branch '{self.label}': 'tap' 0 are the embeddings, which have no attention; take 1 or more"
            )

    def check(self, size: EncoderSize) -> None:
        """Raises UserError on a block that the encoder does not have, or that cannot be read in this way."""
        for key, block in [("tap", self.tap), *(("fuse", block) for block in self.fuse)]:
            if block is not None and block > size.depth:
                raise UserError(
                    f"branch '{self.label}': '{key}' {block} is not there; the encoder has {size.depth} blocks"
                )
        if self.fuse:
            refuse_hierarchical("composed", size, f"branch '{self.label}' fuses blocks, which must have one width")
        if self.tap is not None and self.target.patchwise:
            check_on_grid("composed", size, [self.tap], key=f"tap' of branch '{self.label}")
        if self.tap is not None and isinstance(self.target, AttentionTargetConfig) and not self.target.extra_block:
            check_maps(size, [self.tap], "the student")

    def build(self, encoder: Encoder, kit: Kit, decoder: DecoderConfig) -> Branch:
        """Compose the branch; `decoder` is the default. Raises UserError on a teacher that does not fit."""
        try:
            target = kit.target(self.target)
            loss = self.loss or self.target.usual_loss
            tap = encoder.config.depth if self.tap is None else self.tap
            if not self.target.patchwise:
                return Branch(self.label, self.target.predictor(tap, kit), target, loss, self.weight, "all")
        except UserError as error:
            raise UserError(f"branch '{self.label}': {error}") from error
        return patch_branch(
            self.label,
            encoder,
            self.decoder or decoder,
            target,
            tap=tap,
            neck=self._neck(tap, encoder.config),
            loss=loss,
            weight=self.weight,
            score=self.scored,
        )

    def _neck(self, tap: int, size: EncoderSize) -> nn.Module | None:
        if self.fuse:
            return Fuse(self.fuse, size.width)
        if self.normed is None:
            return None
        return final_tokens(size, tap) if self.normed else Pick(tap, normed=False)


class ComposedConfig(Method):
    """A method made of branches, without a line of Python; give its YAML file to --method."""

    name: Literal["composed"] = "composed"
    """The method."""
    mask_ratio: float = pydantic.Field(default=0.75, ge=0.0, lt=1.0)
    """Share of patches that are hidden."""
    masking: Literal["random", "unit", "block"] = "random"
    """random patches (MAE), squares of several (SimMIM), or blocks (BEiT, MaskFeat)."""
    unit: int | None = pydantic.Field(default=None, ge=1)
    """Side of a square in patches, for masking unit; default 2."""
    min_block: int | None = pydantic.Field(default=None, ge=1)
    """Patches of the smallest block, for masking block; default 15 of 196, in proportion."""
    drop: bool = True
    """Leave masked patches out of the encoder (MAE); false keeps them in as a mask token (SimMIM, MaskFeat)."""
    branches: tuple[BranchConfig, ...] = (BranchConfig(),)
    """What is predicted; pictures show the first branch of pixels."""

    @pydantic.model_validator(mode="after")
    def _check(self) -> ComposedConfig:
        if not self.branches:
            raise ValueError("'branches' is empty; name at least one, such as {target: pixel}")
        label, count = Counter(branch.label for branch in self.branches).most_common(1)[0]
        if count > 1:
            raise ValueError(f"{count} branches are called '{label}'; give each a 'name' of its own")
        for key, masking in (("unit", "unit"), ("min_block", "block")):
            if getattr(self, key) is not None and self.masking != masking:
                raise ValueError(f"'{key}' belongs to masking {masking}; leave it out, or set 'masking' to {masking}")
        if not self.mask_ratio and self.masking != "random":
            raise ValueError(f"'mask_ratio' 0 hides nothing; leave 'masking' {self.masking} out, or raise it")
        for branch in self.branches:
            self._check_branch(branch)
        self._check_teacher()
        return self

    def _check_branch(self, branch: BranchConfig) -> None:
        if branch.scored == "masked" and not self.mask_ratio:
            raise ValueError(
                f"branch '{branch.label}' scores masked patches, but 'mask_ratio' 0 hides none; set its 'score' to all, "
                "or raise 'mask_ratio'"
            )
        if self.mask_ratio and self.drop and isinstance(branch.decoder, LinearDecoderConfig):
            raise ValueError(
                f"branch '{branch.label}': a linear decoder cannot predict dropped patches; take a transformer decoder, "
                "or set 'drop' to false"
            )
        if self.mask_ratio and not self.drop and branch.target.teacher_kind == "masked":
            raise ValueError(
                f"branch '{branch.label}' matches {branch.target.name} over visible patches, but 'drop' false keeps the "
                "others in the encoder; set 'drop' to true"
            )

    def _check_teacher(self) -> None:
        reading = [branch for branch in self.branches if branch.target.teacher_kind != "none"]
        for branch in reading[1:]:
            if branch.target.teacher_kind != reading[0].target.teacher_kind:
                raise ValueError(
                    f"branches '{reading[0].label}' ({reading[0].target.name}) and '{branch.label}' "
                    f"({branch.target.name}) read a teacher in different ways, and there is one --teacher; leave one out"
                )

    @property
    def teacher_kind(self) -> TeacherKind:
        """What the branches read of a teacher."""
        for branch in self.branches:
            if branch.target.teacher_kind != "none":
                return branch.target.teacher_kind
        return "none"

    def check(self, size: EncoderSize) -> None:
        """Raises UserError on blocks that the encoder does not have, or hidden patches that it cannot keep."""
        if not self.drop:
            refuse_hierarchical(self.name, size, KEEPS_HIDDEN)
        masking_for(self._masking(size), size)
        self._check_blocks(size)

    def build_teacher(
        self, teacher: TimmTeacher | CheckpointTeacher | EfficientNetLiteTeacher, size: EncoderSize
    ) -> nn.Module:
        """The frozen teacher. Raises UserError if no branch reads one, on one that does not fit, or on blocks that
        the encoder does not have."""
        self._check_blocks(size)
        if self.teacher_kind == "none":
            raise UserError(
                "no branch of the method reads a teacher; leave --teacher out, or add a branch of target features, "
                "global, blend, attention or hidden"
            )
        if self.teacher_kind == "reconstruction":
            return reconstruction_teacher(teacher, size)
        return super().build_teacher(teacher, size)

    def build(self, encoder: Encoder, normalization: Normalization, teacher: nn.Module | None) -> MaskedImageModel:
        """Compose the model. Raises UserError without the teacher that a branch reads, or on blocks that are not there."""
        self.check(encoder.config)
        self._check_given(teacher)
        targets: list[NamedTarget] = [branch.target for branch in self.branches]
        kit = Kit(encoder.config, normalization, teacher, targets)
        decoder = TransformerDecoderConfig() if self.drop else LinearDecoderConfig()
        branches = [branch.build(encoder, kit, decoder) for branch in self.branches]
        return MaskedImageModel(encoder, self._masking(encoder.config), branches, normalization, drop=self.drop)

    def _check_blocks(self, size: EncoderSize) -> None:
        for branch in self.branches:
            branch.check(size)

    def _check_given(self, teacher: nn.Module | None) -> None:
        kind = self.teacher_kind
        fits = {
            "none": True,
            "features": hasattr(teacher, "channels"),
            "masked": isinstance(teacher, MaskedTeacher),
            "reconstruction": isinstance(teacher, FrozenReconstruction),
        }
        if not fits[kind]:
            branch = next(branch for branch in self.branches if branch.target.teacher_kind == kind)
            raise UserError(f"branch '{branch.label}' of target {branch.target.name} needs {_NEEDS[kind]}")

    def _masking(self, size: EncoderSize) -> Masking:
        if self.masking == "unit":
            return UnitMasking(ratio=self.mask_ratio, unit=self.unit or 2, grid=size.grid)
        if self.masking == "block":
            return BlockMasking(ratio=self.mask_ratio, min_block=self.min_block, grid=size.grid)
        return RandomMasking(ratio=self.mask_ratio)
