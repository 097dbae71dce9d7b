"""Opens what a classifier is distilled from: a fine-tuned run or a timm model with the same classes."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

from edgemim.data.image_set import ImageSet
from edgemim.data.loader import eval_loader
from edgemim.edge.images import Preprocessing
from edgemim.errors import UserError
from edgemim.models.normalization import IDENTITY, Normalization
from edgemim.models.weights import load_weights, read_facts, read_tensors
from edgemim.tasks import load_task
from edgemim.tasks.classification import ClassificationTask, build_model
from edgemim.tasks.distillation import ClassTeacher, DistillationConfig
from edgemim.tasks.task import spread_over_classes
from edgemim.teachers.timm_model import create_timm_model, is_timm_name

_TIMM = "timm:"


def open_class_teacher(config: DistillationConfig, labels: tuple[str, ...]) -> ClassTeacher:
    """The frozen teacher of a student of these classes.

    Raises:
        UserError: if there is none of that name, its weights cannot be had, or its classes are others.
    """
    assert config.teacher is not None
    if config.teacher.startswith(_TIMM):
        return _from_timm(config.teacher.removeprefix(_TIMM), config.weights, labels)
    if config.weights is not None:
        raise UserError("distillation.weights are of timm:NAME; a run brings its own, leave them out")
    return _from_run(Path(config.teacher), labels)


def random_class_teacher(name: str, classes: int) -> ClassTeacher:
    """The network of a teacher, weights drawn at random, on torch's default device: what counting needs of it.

    Raises:
        UserError: if there is no such run or timm model.
    """
    if name.startswith(_TIMM):
        model = create_timm_model(name.removeprefix(_TIMM), pretrained=False)
        size = cast(dict[str, Any], model.pretrained_cfg)["input_size"][-1]
    else:
        facts = read_facts(Path(name))
        if facts["kind"] != ClassificationTask.task_name:
            raise UserError(f"distillation.teacher: {name} holds a {facts['kind']} model, not a classifier")
        model, size = build_model(facts["architecture"], classes), facts["preprocessing"]["image_size"]
    return ClassTeacher(model, IDENTITY, size, f"{name}, {_millions(model)}")


@torch.no_grad()
def top1_on(
    teacher: ClassTeacher, folder: ImageSet, preprocessing: Preprocessing, device: torch.device, limit: int = 1000
) -> tuple[float, int]:
    """A teacher's top-1, percent, on up to `limit` images of all classes as the student sees them, and their number."""
    chosen, right, seen = spread_over_classes(folder.labels, limit), 0, 0
    for batch in eval_loader(folder, preprocessing, batch_size=64, indices=chosen):
        named = teacher(batch.images.to(device).float() / 255).argmax(1).cpu()
        right, seen = right + int((named == batch.labels).sum()), seen + len(batch)
    return 100 * right / seen, seen


def _from_run(run: Path, labels: tuple[str, ...]) -> ClassTeacher:
    if not run.is_dir():
        hint = f"; timm's model is {_TIMM}{run}" if is_timm_name(str(run)) else ""
        raise UserError(f"distillation.teacher: no run folder at {run}; give one of `edgemim finetune`{hint}")
    task = load_task(run)
    if not isinstance(task, ClassificationTask):
        raise UserError(f"distillation.teacher: {run} holds a {task.task_name} model, not a classifier")
    if set(task.labels) != set(labels):
        odd = sorted(set(task.labels) ^ set(labels))
        raise UserError(
            f"distillation.teacher: the classes of {run} are not those of --data ({odd[0]!r} is on one side alone); "
            "give a teacher that was trained on the same classes"
        )
    order = tuple(task.labels.index(label) for label in labels)
    return ClassTeacher(
        task.model,
        task.normalization,
        task.preprocessing.image_size,
        f"{run}, {_millions(task.model)}",
        None if task.labels == labels else order,
    )


def _from_timm(name: str, weights: Path | None, labels: tuple[str, ...]) -> ClassTeacher:
    if weights is None or not is_timm_name(name):
        model = create_timm_model(name, pretrained=True)
    else:
        model = timm.create_model(name, num_classes=len(labels))
        load_weights(model, read_tensors(weights))
    facts = cast(dict[str, Any], model.pretrained_cfg)
    found = cast(int, model.num_classes)
    if found != len(labels):
        raise UserError(
            f"distillation.teacher: {_TIMM}{name} tells {found} classes apart, --data has {len(labels)}; "
            "fine-tune it on them first (--init timm:NAME) and give that run"
        )
    normalization = Normalization(tuple(facts["mean"]), tuple(facts["std"]))
    source = "timm's weights" if weights is None else str(weights)
    return ClassTeacher(model, normalization, facts["input_size"][-1], f"{_TIMM}{name}, {source}, {_millions(model)}")


def _millions(model: nn.Module) -> str:
    return f"{sum(p.numel() for p in model.parameters()) / 1e6:.1f} million parameters"
