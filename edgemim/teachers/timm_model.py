"""Teachers by timm name: any architecture, with the pretrained weights that timm knows."""

from __future__ import annotations

from typing import Any, Literal

import pydantic
import timm
from torch import nn

from edgemim.config import Config, suggest
from edgemim.errors import UserError
from edgemim.teachers.teacher import Teacher, build_teacher


class TimmTeacher(Config):
    """A model by its timm name, with pretrained weights (downloaded by timm into its own cache, checked there)."""

    name: Literal["timm"] = "timm"
    """The kind of teacher."""
    model: str = "vit_base_patch16_224.dino"
    """timm's name of architecture and weights."""
    pretrained: bool = True
    """Load timm's weights; without them the teacher is random (for tests)."""
    stage: int | None = None
    """Index of the stage or block whose features are the target; default the deepest affordable one."""
    input_size: int | None = None
    """Side of the teacher's input in pixels; default what meets the student's grid."""
    output_stride: int | None = pydantic.Field(default=None, ge=1)
    """Stride at which a convolutional network stops: later stages dilate instead, so that 16 gives a last stage of 14×14 on
    224 px, with the weights as they are."""

    def build(self, image_size: int, student_grid: tuple[int, int]) -> Teacher:
        """Load and freeze the teacher. Raises UserError on an unknown name, failed download or grid that does not fit."""
        model = create_timm_model(self.model, pretrained=self.pretrained, output_stride=self.output_stride)
        return build_teacher(
            model,
            self.model,
            image_size=image_size,
            student_grid=student_grid,
            stage=self.stage,
            input_size=self.input_size,
        )


def create_timm_model(name: str, *, pretrained: bool, output_stride: int | None = None) -> nn.Module:
    """`timm.create_model` whose failures are one sentence. Raises UserError."""
    if not is_timm_name(name):
        near = suggest(name, timm.list_models())
        raise UserError(f"timm knows no model '{name}'{near}; `timm.list_models()` lists the names")
    try:
        options: dict[str, Any] = {} if output_stride is None else {"output_stride": output_stride}
        return timm.create_model(name, pretrained=pretrained, **options)
    except Exception as error:  # a download can fail in many ways, and timm passes each on as it came
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        if output_stride is not None and isinstance(error, (TypeError, AssertionError, NotImplementedError)):
            raise UserError(
                f"timm model '{name}' has no output stride {output_stride} ({reason}); leave 'teacher.output_stride' out, "
                "or take a ResNet, RegNet, ConvNeXt or EfficientNet"
            ) from error
        raise UserError(
            f"cannot load timm model '{name}': {reason}; with no network, give --teacher checkpoint and a file of weights"
        ) from error


def is_timm_name(name: str) -> bool:
    """Whether timm knows the architecture (what follows a dot names the weights)."""
    return timm.is_model(name.partition(".")[0])
