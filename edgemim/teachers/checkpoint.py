"""Teachers from a file of weights or from a run of edgemim; a pickle is read as plain tensors, never executed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from torch import nn

from edgemim.config import Config
from edgemim.errors import UserError
from edgemim.models.weights import load_encoder, load_weights, read_tensors, to_timm
from edgemim.teachers.teacher import Teacher, build_teacher
from edgemim.teachers.timm_model import create_timm_model

_HEADS = ("head.", "fc.", "classifier.", "fc_norm.", "head_dist.")


class CheckpointTeacher(Config):
    """A file of weights (.safetensors, or a pickle of plain tensors) for a timm architecture, or a pre-training run."""

    name: Literal["checkpoint"] = "checkpoint"
    """The kind of teacher."""
    path: Path | None = None
    """File of weights, or folder of an `edgemim pretrain` run."""
    model: str = ""
    """timm's name of the architecture that a file holds; not needed for a run folder."""
    mean: tuple[float, float, float] | None = None
    """Mean of a channel on the scale [0, 1] that the teacher was trained with; default timm's for the architecture."""
    std: tuple[float, float, float] | None = None
    """Deviation of a channel on the scale [0, 1]; default as for the mean."""
    stage: int | None = None
    """Index of the stage or block whose features are the target; default the deepest affordable one."""
    input_size: int | None = None
    """Side of the teacher's input in pixels; default what meets the student's grid."""

    def build(self, image_size: int, student_grid: tuple[int, int]) -> Teacher:
        """Load and freeze the teacher. Raises UserError on a file that is missing, refused or does not fit."""
        if self.path is None:
            raise UserError("teacher checkpoint needs a file or run folder; give --teacher.path")
        model = to_timm(load_encoder(self.path)) if self.path.is_dir() else self.load_file()
        return build_teacher(
            model,
            self.path.name,
            image_size=image_size,
            student_grid=student_grid,
            stage=self.stage,
            input_size=self.input_size,
            mean=self.mean,
            std=self.std,
        )

    def load_file(self) -> nn.Module:
        """The timm model with the file's weights. Raises UserError on a file that is missing, refused or does not fit."""
        path = self.path
        assert path is not None
        if not self.model:
            raise UserError(f"teacher.model is empty: name the timm architecture that {path} holds")
        # The file first: what it is made of is refused before anything is built from it.
        weights = read_tensors(path)
        model = create_timm_model(self.model, pretrained=False)
        try:
            load_weights(model, weights, may_drop=_HEADS, may_miss=_HEADS)
        except UserError as error:
            raise UserError(f"{path} does not hold a {self.model}: {error}") from error
        return model
