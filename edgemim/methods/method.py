"""What the configuration of every method has in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal

from torch import nn

from edgemim.config import Config
from edgemim.data.transforms import KeyedTransform, PretrainTransform
from edgemim.errors import UserError
from edgemim.methods.pretraining import PretrainObjective
from edgemim.models.encoder import Encoder
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import EncoderSize
from edgemim.teachers import CheckpointTeacher, EfficientNetLiteTeacher, TimmTeacher, masked_teacher

KEEPS_HIDDEN = "hidden patches stay in the encoder as a mask token, and it can only drop them"
"""What a hierarchical encoder lacks for SimMIM and its kin."""
TeacherKind = Literal["none", "features", "masked", "reconstruction"]


class Method(Config):
    """Base of the methods' configurations: each composes its own model."""

    @property
    def teacher_kind(self) -> TeacherKind:
        """What --teacher is built as: not at all, as features of the whole image on the student's grid, as a vision
        transformer that sees the student's visible patches, or as a masked autoencoder that fills the others in."""
        return "none"

    def check(self, size: EncoderSize) -> None:
        """Raises UserError, before anything is loaded, if the method does not run on an encoder of that size."""

    def build_teacher(
        self, teacher: TimmTeacher | CheckpointTeacher | EfficientNetLiteTeacher, size: EncoderSize
    ) -> nn.Module:
        """The frozen teacher in the kind that this method reads. Raises UserError on one that does not fit."""
        if self.teacher_kind == "features":
            return teacher.build(size.image_size, size.grid)
        if self.teacher_kind == "masked":
            return masked_teacher(teacher, size)
        name = getattr(self, "name", "")
        raise UserError(f"method {name} has no teacher; leave --teacher out, or give --method feature_distill")

    def build_transform(self, transform: PretrainTransform, image_size: int) -> KeyedTransform:
        """What makes the method's input of an image and its key: the given augmentation."""
        return transform.build(image_size)

    def build(self, encoder: Encoder, normalization: Normalization, teacher: nn.Module | None) -> PretrainObjective:
        """Compose the model around an encoder. Raises UserError on what cannot be composed."""
        raise NotImplementedError


def refuse_hierarchical(method: str, size: EncoderSize, reason: str) -> None:
    """Raises UserError, one sentence with the remedy, if an encoder is hierarchical; `reason` says what it lacks."""
    if size.hierarchical:
        raise UserError(
            f"method {method} does not run on encoder {size.name}: {reason}; give --method mae, or a plain encoder such "
            "as --encoder vit_tiny"
        )


def check_on_grid(method: str, size: EncoderSize, taps: Iterable[int], key: str = "taps") -> None:
    """Raises UserError on a block after which a patch is still several tokens."""
    for tap in taps:
        if size.split_at(tap) > 1:
            first = next(number for number in range(1, size.depth + 1) if size.split_at(number) == 1)
            raise UserError(
                f"method {method}: after block {tap} a patch of encoder {size.name} is still {size.split_at(tap)} x "
                f"{size.split_at(tap)} tokens; name blocks {first} to {size.depth} in '{key}'"
            )


def rising_blocks(key: str, blocks: Sequence[int], depth: int) -> None:
    """Raises UserError unless blocks rise and lie within an encoder of `depth` blocks."""
    if list(blocks) != sorted(set(blocks)) or not 1 <= blocks[0] <= blocks[-1] <= depth:
        raise UserError(f"'{key}' {list(blocks)} must rise and lie within the encoder's blocks 1 to {depth}")
