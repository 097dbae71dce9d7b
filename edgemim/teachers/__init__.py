"""Frozen models that give targets. The union below is the registry: to add a kind, write one file and name it here."""

from typing import Annotated

import pydantic
import timm

from edgemim.config import Presets, suggest
from edgemim.teachers.checkpoint import CheckpointTeacher
from edgemim.teachers.efficientnet_lite import EfficientNetLiteTeacher
from edgemim.teachers.masked import MaskedTeacher, masked_teacher
from edgemim.teachers.teacher import Teacher
from edgemim.teachers.timm_model import TimmTeacher, is_timm_name


class TeacherPresets(Presets):
    """Presets in which every timm name stands for that model with its pretrained weights."""

    @property
    def names(self) -> str:
        """What NAME may be, for help and messages."""
        return f"{super().names}, or any model of timm"

    def pick(self, value: object) -> object:
        """Replace a preset's or a timm model's name by its config. Raises ValueError on an unknown name."""
        if not isinstance(value, str) or value in self.table or value.endswith((".yaml", ".yml")):
            return super().pick(value)
        if is_timm_name(value):
            return TimmTeacher(model=value)
        near = suggest(value, [*self.table, *timm.list_models()])
        raise ValueError(f"unknown name {value!r}{near}; known: {self.names.removeprefix('one of ')}")


TeacherConfig = Annotated[
    TimmTeacher | CheckpointTeacher | EfficientNetLiteTeacher,
    pydantic.Field(discriminator="name"),
    TeacherPresets(
        {
            "efficientnet_lite0": EfficientNetLiteTeacher(),
            "efficientnet_lite1": EfficientNetLiteTeacher(variant="lite1"),
            "efficientnet_lite2": EfficientNetLiteTeacher(variant="lite2"),
            "timm": TimmTeacher(),
            "checkpoint": CheckpointTeacher(),
        }
    ),
]

__all__ = [
    "CheckpointTeacher",
    "EfficientNetLiteTeacher",
    "MaskedTeacher",
    "Teacher",
    "TeacherConfig",
    "TimmTeacher",
    "masked_teacher",
]
