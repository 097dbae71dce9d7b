"""Teachers without their weights, for counting: nothing is read that is not there, and nothing downloaded."""

from __future__ import annotations

from typing import Any

import torch
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor, nn

from edgemim.errors import UserError
from edgemim.methods.beit import BeitConfig
from edgemim.methods.branches import MaskedImageModel
from edgemim.methods.mae import MaeConfig
from edgemim.methods.reconstruction import FrozenReconstruction
from edgemim.models.build import build_encoder
from edgemim.models.normalization import IDENTITY, Normalization
from edgemim.models.weights import load_encoder, to_timm
from edgemim.teachers import CheckpointTeacher, EfficientNetLiteTeacher, MaskedTeacher, Teacher, TimmTeacher
from edgemim.teachers.fit import find_fit
from edgemim.teachers.teacher import build_teacher, prune_after
from edgemim.teachers.timm_model import create_timm_model

_ASSUMED = "no run is given, so assumed: a"


def weightless_teacher(method: Any, teacher: Any, size: Any, *, runs: bool = False) -> nn.Module:
    """The teacher that a method would build for an encoder of `size`, with weights that nobody trained.

    A checkpoint that is not there stands for its architecture; a run that is not there, and that a method reads as a
    vision transformer or a masked autoencoder, for one of the student's size, which its summary says. On torch's default
    device, which may be meta.

    Args:
        method: a method's configuration.
        teacher: a teacher's configuration.
        size: an encoder's configuration.
        runs: make it fit to be run and timed, with its norms folded, which only tensors with content allow.

    Raises:
        UserError: where the method refuses the teacher, or it does not say what it is.
    """
    absent = isinstance(teacher, CheckpointTeacher) and not (teacher.path is not None and teacher.path.is_dir())
    if method.teacher_kind == "reconstruction" and absent:
        masked = MaeConfig(decoder=method.decoder).build(build_encoder(size), IDENTITY, None)
        return FrozenReconstruction(masked, f"{_ASSUMED} masked autoencoder of the student's size and decoder")
    if method.teacher_kind == "masked" and absent and not teacher.model:
        return MaskedTeacher(build_encoder(size), IDENTITY, f"{_ASSUMED} vision transformer of the student's size")
    if absent:
        teacher = _architecture(teacher)
    elif isinstance(teacher, TimmTeacher):
        teacher = teacher.model_copy(update={"pretrained": False})
    if method.teacher_kind == "features":
        return _features(teacher, size, runs)
    try:
        return method.build_teacher(teacher, size)
    except (RuntimeError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(
            f"the teacher of method {method.name} cannot be counted without its weights: {reason}"
        ) from error


class AbsentTokenizer:
    """A tokenizer that nobody gave: it knows the size of its vocabulary and costs nothing."""

    def __init__(self, vocabulary: int, tokens: int) -> None:
        self.vocabulary, self._tokens = vocabulary, tokens

    def __call__(self, images: Tensor) -> Tensor:
        return torch.zeros(len(images), self._tokens, dtype=torch.int64, device=images.device)


def compose_without_tokenizer(method: BeitConfig, size: Any, normalization: Normalization) -> MaskedImageModel:
    """BEiT around a tokenizer that is not there."""
    encoder = build_encoder(size)
    return method.compose(encoder, normalization, AbsentTokenizer(method.vocabulary, size.tokens))


def _architecture(teacher: CheckpointTeacher) -> TimmTeacher:
    if not teacher.model:
        raise UserError(
            "teacher checkpoint names neither a run folder nor an architecture to count; give --teacher.path RUN, or "
            "--teacher.model NAME"
        )
    return TimmTeacher(model=teacher.model, pretrained=False, stage=teacher.stage, input_size=teacher.input_size)


def _features(teacher: TimmTeacher | CheckpointTeacher | EfficientNetLiteTeacher, size: Any, runs: bool) -> Teacher:
    if isinstance(teacher, CheckpointTeacher):
        assert teacher.path is not None
        name, model = teacher.path.name, to_timm(load_encoder(teacher.path))
    else:
        name = teacher.model if isinstance(teacher, TimmTeacher) else f"tf_efficientnet_{teacher.variant}"
        model = create_timm_model(name, pretrained=False)
    if runs:
        return build_teacher(
            model,
            name,
            image_size=size.image_size,
            student_grid=size.grid,
            stage=teacher.stage,
            input_size=teacher.input_size,
        )
    # As `build_teacher` does, but norms stay: folding looks at outputs, and norms hold hardly any arithmetic.
    fit = find_fit(
        model, name, image_size=size.image_size, grid=size.grid, stage=teacher.stage, input_size=teacher.input_size
    )
    prune_after(model, fit)
    return Teacher(model.eval(), fit, mean=IMAGENET_DEFAULT_MEAN, std=IMAGENET_DEFAULT_STD)
