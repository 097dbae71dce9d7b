"""The networks that `edgemim analyze` looks at, by name, file or run, and the images that all of them see."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
import torch
import tyro

from edgemim.analysis.subject import Subject, subject_of, subject_of_run
from edgemim.commands.analyze import AnalyzeConfig, open_sample, read_teacher, sample_batches
from edgemim.data.image_set import ImageSet
from edgemim.data.loader import Batch
from edgemim.errors import UserError
from edgemim.models.build import build_encoder
from edgemim.models.convert import look, read_published
from edgemim.models.normalization import Normalization
from edgemim.models.weights import encoder_of, read_facts, read_tensors
from edgemim.teachers import CheckpointTeacher, EfficientNetLiteTeacher
from edgemim.teachers.efficientnet_lite import load_efficientnet_lite
from edgemim.teachers.timm_model import create_timm_model

_UNTRAINED = "random:"
MOST = 7
"""Colours of a picture."""


class SubjectsConfig(AnalyzeConfig):
    """What the analyses of networks share: which ones, and the images."""

    subject: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A network, repeated for several: a timm name, efficientnet_lite0, a run folder (pre-trained or fine-tuned), random:RUN
    (that network before its training), a published file, or '{name: timm, model: NAME, pretrained: false}'."""
    image_size: int | None = pydantic.Field(default=None, ge=8)  # pyright: ignore[reportIncompatibleVariableOverride]
    """Side in pixels of the images as they are read; each network resizes them to its own input. Default the largest input."""

    @pydantic.field_validator("subject", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


def open_subjects(texts: Sequence[str], seed: int, device: torch.device) -> list[Subject]:
    """The named networks; names that are the same are numbered. Raises UserError on what names none."""
    found: list[Subject] = []
    for text in texts:
        torch.manual_seed(seed)
        subject = _open(text).to(device)
        same = sum(other.name.partition(" #")[0] == subject.name for other in found)
        subject.name += f" #{same + 1}" if same else ""
        found.append(subject)
    return found


def _open(text: str) -> Subject:
    if text.startswith(_UNTRAINED):
        return _untrained(Path(text.removeprefix(_UNTRAINED)))
    path = Path(text)
    if path.is_dir():
        return subject_of_run(path)
    if path.is_file():
        return _published(path)
    teacher = read_teacher(text, "--subject")
    if isinstance(teacher, EfficientNetLiteTeacher):
        return subject_of(load_efficientnet_lite(teacher.variant), f"efficientnet_{teacher.variant}")
    if isinstance(teacher, CheckpointTeacher):
        return _of_file(teacher)
    name = teacher.model if teacher.pretrained else f"{teacher.model} (random)"
    return subject_of(create_timm_model(teacher.model, pretrained=teacher.pretrained), name)


def _of_file(teacher: CheckpointTeacher) -> Subject:
    if teacher.path is None:
        raise UserError(
            "--subject: a checkpoint needs its file; give '{name: checkpoint, model: TIMM_NAME, path: FILE}'"
        )
    own = teacher.own_encoder()
    model, mean, std = (teacher.load_file(), None, None) if own is None else own
    mean, std = teacher.mean or mean, teacher.std or std
    return subject_of(model, teacher.path.name, Normalization(mean, std) if mean and std else None)


def _untrained(run: Path) -> Subject:
    if not run.is_dir():
        raise UserError(f"--subject {_UNTRAINED}{run}: no run folder at {run}")
    facts = read_facts(run)
    if facts["kind"] == "encoder":
        size = encoder_of(run)
        trained = subject_of_run(run)
        return subject_of(build_encoder(size), f"{run.name} (random)", trained.normalization)
    raise UserError(f"--subject {_UNTRAINED}{run} holds a {facts['kind']} model; give a pre-training run")


def _published(path: Path) -> Subject:
    found = look(read_tensors(path))
    families = found[0].families if found else ()
    if len(families) == 1:
        return subject_of(read_published(path, families[0]).encoder, path.name)
    if not families:
        return _of_file(read_teacher(str(path), "--subject"))  # pyright: ignore[reportArgumentType] (it refuses a file)
    raise UserError(
        f"{path} may be a file of {' or '.join(families)}; say which: --subject '{{name: checkpoint, family: {families[0]}, "
        f"path: {path}}}'"
    )


class Sample:
    """The seeded sample, classes in turn: figures that are made within a batch need all of them in it.

    Attributes:
        folder: its images, in the order in which they are seen.
    """

    def __init__(self, config: SubjectsConfig, subjects: Sequence[Subject]) -> None:
        folder = open_sample(config)
        rank = np.zeros(len(folder), np.int64)
        for label in np.unique(folder.labels):
            members = np.flatnonzero(folder.labels == label)
            rank[members] = np.arange(len(members))
        shuffled = np.random.default_rng([config.seed, 0x0DE2]).permutation(len(folder))
        self.folder: ImageSet = folder.select(shuffled[np.argsort(rank[shuffled], kind="stable")])
        self.image_size = config.image_size or max(max(subject.size) for subject in subjects)
        self._config = config.model_copy(update={"image_size": self.image_size})

    def batches(self, device: torch.device) -> Iterator[Batch]:
        """The images as uint8 on the device."""
        batches: Iterable[Batch] = sample_batches(self.folder, self._config)
        for batch in batches:
            yield batch.to(device)


def facts_of(subject: Subject) -> dict[str, Any]:
    """What a result says of a network."""
    return {"network": type(subject.network).__name__, "input_px": list(subject.size), "layers": list(subject.layers)}
