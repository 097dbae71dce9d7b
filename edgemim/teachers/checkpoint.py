"""Teachers from a file of weights, published ones among them, or from a run; a pickle is read as data, never executed."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import pydantic
from torch import nn

from edgemim.config import Config
from edgemim.edge.images import IMAGENET_MEAN, IMAGENET_STD
from edgemim.errors import UserError
from edgemim.models.convert import FamilyName, look, read_published
from edgemim.models.encoder import Encoder
from edgemim.models.weights import load_encoder, load_weights, read_facts, read_tensors, to_timm
from edgemim.teachers.teacher import Teacher, build_teacher
from edgemim.teachers.timm_model import create_timm_model

Channels = tuple[float, float, float]
_HEADS = ("head.", "fc.", "classifier.", "fc_norm.", "head_dist.")


class CheckpointTeacher(Config):
    """A file of weights (.safetensors, or a pickle of plain tensors) for a timm architecture, a published file, or a run."""

    name: Literal["checkpoint"] = "checkpoint"
    """The kind of teacher."""
    path: Path | None = None
    """File of weights, or folder of a run of `edgemim pretrain` or `edgemim convert`."""
    model: str = ""
    """timm's name of the architecture that a file holds; not needed for a run folder or with a family."""
    family: FamilyName | None = None
    """Whose published file it is, as in `edgemim convert FILE --from`; instead of a timm name."""
    heads: int | None = pydantic.Field(default=None, ge=1)
    """Attention heads of a published file; default what the family has at its width."""
    mean: tuple[float, float, float] | None = None
    """Mean of a channel on the scale [0, 1] that the teacher was trained with; default the run's own, ImageNet's for a
    published file, else timm's for the architecture."""
    std: tuple[float, float, float] | None = None
    """Deviation of a channel on the scale [0, 1]; default as for the mean."""
    stage: int | None = None
    """Index of the stage or block whose features are the target; default the deepest affordable one."""
    input_size: int | None = None
    """Side of the teacher's input in pixels; default what meets the student's grid."""
    output_stride: int | None = pydantic.Field(default=None, ge=1)
    """Stride at which a convolutional network stops: later stages dilate instead (see the timm teacher)."""

    def build(self, image_size: int, student_grid: tuple[int, int]) -> Teacher:
        """Load and freeze the teacher. Raises UserError on a file that is missing, refused or does not fit."""
        if self.path is None:
            raise UserError("teacher checkpoint needs a file or run folder; give --teacher.path")
        own = self.own_encoder()
        mean, std = (None, None) if own is None else own[1:]
        return build_teacher(
            self.load_file() if own is None else to_timm(own[0]),
            self.path.name,
            image_size=image_size,
            student_grid=student_grid,
            stage=self.stage,
            input_size=self.input_size,
            mean=self.mean or mean,
            std=self.std or std,
        )

    def own_encoder(self) -> tuple[Encoder, Channels | None, Channels | None] | None:
        """The encoder of a run folder or of a published file, with its mean and deviation; None for a timm architecture.

        Raises:
            UserError: on a run without an encoder, or a file that is missing, refused or not the family's.
        """
        assert self.path is not None
        if self.path.is_dir():
            encoder, facts = load_encoder(self.path), read_facts(self.path).get("preprocessing", {})
            mean, std = (tuple(facts[key]) if key in facts else None for key in ("mean", "std"))
            return encoder, mean, std  # pyright: ignore[reportReturnType] (three numbers each, as Preprocessing wrote them)
        if self.family is None:
            return None
        if self.model:
            raise UserError("teacher.model and teacher.family both say what the file holds; give one of them")
        return read_published(self.path, self.family, self.heads).encoder, IMAGENET_MEAN, IMAGENET_STD

    def load_file(self) -> nn.Module:
        """The timm model with the file's weights. Raises UserError on a file that is missing, refused or does not fit."""
        path = self.path
        assert path is not None
        # The file first: what it is made of is refused before anything is built from it.
        if not self.model:
            raise UserError(_nameless(path))
        weights = read_tensors(path)
        model = create_timm_model(self.model, pretrained=False, output_stride=self.output_stride)
        try:
            load_weights(model, weights, may_drop=_HEADS, may_miss=_HEADS)
        except UserError as error:
            raise UserError(f"{path} does not hold a {self.model}: {error}") from error
        return model


def _nameless(path: Path) -> str:
    found = look(read_tensors(path))
    hint = f" (it looks like {found[0].title} checkpoint: --teacher.family {found[0].families[0]})" if found else ""
    return f"give teacher.model, the timm architecture that {path} holds, or teacher.family, whose published file it is{hint}"
