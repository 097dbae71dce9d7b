"""What the configuration of every method has in common."""

from __future__ import annotations

from typing import Literal

from torch import nn

from edgemim.config import Config
from edgemim.data.transforms import KeyedTransform, PretrainTransform
from edgemim.errors import UserError
from edgemim.methods.pretraining import PretrainObjective
from edgemim.models.encoder import Encoder
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import VitConfig
from edgemim.teachers import CheckpointTeacher, EfficientNetLiteTeacher, TimmTeacher, masked_teacher

TeacherKind = Literal["none", "features", "masked", "reconstruction"]


class Method(Config):
    """Base of the methods' configurations: each composes its own model."""

    @property
    def teacher_kind(self) -> TeacherKind:
        """What --teacher is built as: not at all, as features of the whole image on the student's grid, as a vision
        transformer that sees the student's visible patches, or as a masked autoencoder that fills the others in."""
        return "none"

    def build_teacher(
        self, teacher: TimmTeacher | CheckpointTeacher | EfficientNetLiteTeacher, size: VitConfig
    ) -> nn.Module:
        """The frozen teacher in the kind that this method reads. Raises UserError on one that does not fit."""
        if self.teacher_kind == "features":
            return teacher.build(size.image_size, size.grid)
        if self.teacher_kind == "masked":
            return masked_teacher(teacher, size.grid)
        name = getattr(self, "name", "")
        raise UserError(f"method {name} has no teacher; leave --teacher out, or give --method feature_distill")

    def build_transform(self, transform: PretrainTransform, image_size: int) -> KeyedTransform:
        """What makes the method's input of an image and its key: the given augmentation."""
        return transform.build(image_size)

    def build(self, encoder: Encoder, normalization: Normalization, teacher: nn.Module | None) -> PretrainObjective:
        """Compose the model around an encoder. Raises UserError on what cannot be composed."""
        raise NotImplementedError
