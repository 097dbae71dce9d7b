"""`edgemim cost`: what a recipe would cost, before anything is downloaded, read or trained."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
import timm
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import nn

from edgemim.analysis.cost import Cost, count_cost
from edgemim.analysis.throughput import Throughput, measure, training_step
from edgemim.analysis.weightless import compose_without_tokenizer, weightless_teacher
from edgemim.commands.finetune import FinetuneConfig
from edgemim.commands.initial import architecture_of
from edgemim.commands.pretrain import PretrainConfig, build
from edgemim.commands.segmentation.cost import random_segmenter
from edgemim.commands.tracking.cost import random_tracker
from edgemim.config import Config, from_mapping, read_mapping
from edgemim.edge.images import Preprocessing
from edgemim.edge.machine import cpu_model
from edgemim.errors import UserError
from edgemim.methods import MethodConfig
from edgemim.methods.beit import BeitConfig
from edgemim.models.normalization import Normalization
from edgemim.models.sizes import EncoderConfig, VitConfig
from edgemim.models.weights import encoder_of
from edgemim.run import RUNS, RunRecord, prepare_folder, read_record, write_text
from edgemim.tasks.class_teacher import random_class_teacher
from edgemim.tasks.classification import ClassificationTask, build_model
from edgemim.tasks.distillation import Distillation
from edgemim.tasks.segmentation import SegmentationConfig
from edgemim.tasks.task import Task
from edgemim.tasks.tracking import TrackingConfig
from edgemim.teachers import TeacherConfig
from edgemim.training.distributed import pick_device
from edgemim.training.objective import Objective

Recipe = PretrainConfig | FinetuneConfig
_MEASURED_BATCH = 32


class CostConfig(Config):
    """Parameters, arithmetic, memory and hours of a training: of a recipe, a run's folder, or a method and an encoder.

    Nothing is trained, no image is read and no weight downloaded; --measure trains on random images for some seconds.

    Example: edgemim cost configs/pretrain/mae_lite_vit_tiny_in1k.yaml --images 1281167 --images-per-second 2000
    """

    recipe: Annotated[Path | None, tyro.conf.Positional] = None
    """YAML file of pretrain or finetune, or the folder of a run; default the default recipe of pretrain."""
    method: MethodConfig | None = None
    """Another method than the recipe's."""
    encoder: EncoderConfig | None = None
    """Another network than the recipe's."""
    teacher: TeacherConfig | None = None
    """Another frozen model than the recipe's."""
    classes: int = pydantic.Field(default=1000, ge=2)
    """Classes of a fine-tuned head."""
    processes: int = pydantic.Field(default=1, ge=1)
    """Processes (GPUs) that share a batch, for the memory of one."""
    images: int | None = pydantic.Field(default=None, ge=1)
    """Images of a pass, for the hours."""
    epochs: float | None = pydantic.Field(default=None, gt=0)
    """Passes, for the hours; default the recipe's."""
    images_per_second: float | None = pydantic.Field(default=None, gt=0)
    """Throughput, for the hours."""
    measure: bool = False
    """Measure the throughput here and now, on random images and random weights."""
    measure_seconds: float = pydantic.Field(default=10.0, gt=0)
    """How long to measure."""
    measure_batch: int | None = pydantic.Field(default=None, ge=1)
    """Images of a measured step; default the recipe's, at most 32."""
    device: str = "auto"
    """What to measure on: auto, cpu or cuda."""
    json_file: Annotated[Path | None, tyro.conf.arg(name="json", metavar="JSON_FILE")] = None
    """File for all figures as JSON."""
    out: Path = RUNS / "cost"
    """Where run.json goes."""


def cost(config: CostConfig) -> dict[str, Any]:
    """Count; prints a table and returns the figures. Raises UserError on a recipe that cannot be composed or counted."""
    recipe = open_recipe(config)
    prepare_folder(config.out, resume=True)
    with RunRecord("cost", config.out, config) as record:
        counted = count_cost(lambda: compose(recipe, config.classes), input_shape(recipe))
        speed = _measure(config, recipe) if config.measure else None
        record.results.update(figures(config, recipe, counted, speed))
        if config.json_file is not None:
            write_text(config.json_file, json.dumps(record.results, indent=2) + "\n")
        _show(config, recipe, counted, record.results)
    where = f"--config {config.recipe}" if config.recipe is not None and config.recipe.is_file() else "..."
    print(f"next: edgemim {_verb(recipe)} {where} --data DIR")
    return record.results


def open_recipe(config: CostConfig) -> Recipe:
    """The recipe that is asked about, with what flags change of it. Raises UserError."""
    recipe = PretrainConfig() if config.recipe is None else read_recipe(config.recipe)
    chosen = {key: value for key in ("method", "encoder", "teacher") if (value := getattr(config, key)) is not None}
    for key in chosen:
        if key not in type(recipe).model_fields:
            raise UserError(f"{config.recipe} is a recipe of {_verb(recipe)}, which has no {key}; leave --{key} out")
    task = getattr(recipe, "task", "classification")
    if config.measure and getattr(task, "name", task) == "tracking":
        raise UserError("--measure trains on random images, and a tracker needs pairs; leave it out")
    return recipe.model_copy(update=chosen)


def read_recipe(path: Path) -> Recipe:
    """A recipe of pretrain or finetune, told apart by their keys, from a YAML file or a run's folder. Raises UserError."""
    if path.is_dir():
        verb = read_record(path).get("verb", "pretrain")
        if verb not in ("pretrain", "finetune"):
            raise UserError(
                f"{path} is a folder of `edgemim {verb}`, which trains nothing; give --method and --encoder"
            )
        path = path / "config.yaml"
    data = read_mapping(path)
    only = {
        cls: data.keys() & (cls.model_fields.keys() - other.model_fields.keys())
        for cls, other in ((PretrainConfig, FinetuneConfig), (FinetuneConfig, PretrainConfig))
    }
    tuned = len(only[FinetuneConfig]) > len(only[PretrainConfig])
    return from_mapping(data, FinetuneConfig if tuned else PretrainConfig, where=str(path))


def compose(recipe: Recipe, classes: int, *, runs: bool = False) -> tuple[Objective, nn.Module | None]:
    """What a recipe trains and its teacher, weights drawn at random, on torch's default device."""
    if isinstance(recipe, FinetuneConfig):
        return _fine_tuned(recipe, classes)
    if isinstance(recipe.method, BeitConfig) and recipe.method.tokenizer is None:
        return compose_without_tokenizer(recipe.method, recipe.encoder, Normalization(recipe.mean, recipe.std)), None
    teacher = None
    if recipe.teacher is not None:
        teacher = weightless_teacher(recipe.method, recipe.teacher, recipe.encoder, runs=runs)
    return build(recipe, torch.get_default_device(), teacher), teacher


def input_shape(recipe: Recipe) -> tuple[int, ...]:
    """What the objective takes of one image; a method may make several views of it."""
    if isinstance(recipe, FinetuneConfig):
        if isinstance(recipe.task, TrackingConfig):
            return (3, *[recipe.task.tracker.search_size] * 2)
        if isinstance(recipe.task, SegmentationConfig):
            return (3, recipe.task.crop_size, recipe.task.crop_size)
        return (3, *[_classifier_facts(recipe)[1]] * 2)
    transform = recipe.method.build_transform(recipe.transform, recipe.encoder.image_size)
    return transform(np.zeros((256, 256, 3), np.uint8), 0).shape


def _classifier_facts(recipe: FinetuneConfig) -> tuple[dict[str, Any], int]:
    """The architecture that fine-tuning starts from, and the side of its input in pixels."""
    if recipe.init.startswith("timm:"):
        name = recipe.init.removeprefix("timm:")
        if not timm.is_model(name):
            raise UserError(f"'init': timm knows no model '{name}'")
        facts = timm.get_pretrained_cfg(name)
        return {"timm": name}, facts.input_size[-1] if facts is not None else 224
    run = Path(recipe.init)
    encoder = encoder_of(run) if recipe.init not in ("newest", "scratch") and run.is_dir() else recipe.encoder
    added = recipe.relative_positions
    if added is not None and type(encoder) is not VitConfig:
        raise UserError(f"--relative-positions are added to a plain vision transformer, not to a {encoder.name}")
    encoder = encoder.as_classifier() if added is None else added.added_to(encoder)  # pyright: ignore[reportArgumentType]
    return architecture_of(recipe, encoder), encoder.image_size


def _fine_tuned(recipe: FinetuneConfig, classes: int) -> tuple[Task, nn.Module | None]:
    if isinstance(recipe.task, SegmentationConfig):
        return random_segmenter(recipe, recipe.task, classes), None
    if isinstance(recipe.task, TrackingConfig):
        return random_tracker(recipe, recipe.task), None
    architecture, size = _classifier_facts(recipe)
    listened = recipe.distillation
    told = None if listened.teacher is None else Distillation(listened, random_class_teacher(listened.teacher, classes))
    task = ClassificationTask(
        build_model(architecture, classes, drop_path=recipe.drop_path),
        tuple(map(str, range(classes))),
        Preprocessing(image_size=size, crop_pct=recipe.crop_pct),
        None,
        architecture=architecture,
        mixing=recipe.mixing,
        distillation=told,
    )
    return task, None if told is None else told.teacher


def _measure(config: CostConfig, recipe: Recipe) -> Throughput:
    device = pick_device(config.device)
    batch = config.measure_batch or min(recipe.batch_size // recipe.accumulate, _MEASURED_BATCH)
    recipe = recipe.model_copy(update={"batch_size": batch, "accumulate": 1, "device": config.device})
    torch.manual_seed(recipe.seed)
    objective, teacher = compose(recipe, config.classes, runs=True)
    if teacher is not None:
        teacher.to(device)
    step = training_step(objective.to(device), recipe, device, input_shape(recipe))
    return measure(step, recipe, device, seconds=config.measure_seconds)


def figures(config: CostConfig, recipe: Recipe, counted: Cost, speed: Throughput | None) -> dict[str, Any]:
    """All figures of an answer, for run.json."""
    epochs = config.epochs or recipe.epochs
    rate = speed.images_per_s if speed is not None else config.images_per_second
    seen = None if config.images is None else config.images * epochs
    share = _process_share(config, recipe)
    return {
        "recipe": None if config.recipe is None else str(config.recipe),
        "verb": _verb(recipe),
        "what": _title(recipe),
        **counted.as_dict(),
        "images_of_a_process": share,
        "process_fp32_mib": counted.memory.total_mib(share, bf16=False),
        "process_bf16_mib": counted.memory.total_mib(share, bf16=True),
        "epochs": epochs,
        "images": config.images,
        "total_petaflop": None if seen is None else seen * counted.training_gflop / 1e6,
        "images_per_s": rate,
        "measured": None if speed is None else {**asdict(speed), "cpu": cpu_model()},
        "hours": None if seen is None or rate is None else seen / rate / 3600,
    }


def _process_share(config: CostConfig, recipe: Recipe) -> int:
    """Images that one process computes at once."""
    return max(1, recipe.batch_size // (config.processes * recipe.accumulate))


def _verb(recipe: Recipe) -> str:
    return "finetune" if isinstance(recipe, FinetuneConfig) else "pretrain"


def _title(recipe: Recipe) -> str:
    if isinstance(recipe, FinetuneConfig):
        task = "" if recipe.task.name == "classification" else f", {recipe.task.name}"
        return f"finetune{task}, {recipe.init if recipe.init.startswith('timm:') else recipe.encoder.name}"
    size = recipe.encoder
    return f"{recipe.method.name}, {size.name} {size.width} x {size.depth}, {size.heads} heads, {size.image_size} px"


def _show(config: CostConfig, recipe: Recipe, counted: Cost, found: dict[str, Any]) -> None:
    table = Table(title=_title(recipe))
    for column in ("one image", "parameters", "forward GFLOP", "backward GFLOP", "share"):
        table.add_column(column, justify="left" if column == "one image" else "right")
    for name, part in counted.parts.items():
        if part.parameters or part.forward_gflop:
            arithmetic = part.forward_gflop + part.backward_gflop
            share = arithmetic / counted.training_gflop if counted.training_gflop else 0.0
            row = (f"{part.parameters:,}", f"{part.forward_gflop:.3f}", f"{part.backward_gflop:.3f}", f"{share:.0%}")
            table.add_row(name, *row)
    backward = counted.training_gflop - counted.forward_gflop
    everything = sum(part.parameters for part in counted.parts.values())
    table.add_row("together", f"{everything:,}", f"{counted.forward_gflop:.3f}", f"{backward:.3f}", "", style="bold")
    Console().print(table)
    for line in _lines(config, recipe, counted, found):
        print(line)


def _lines(config: CostConfig, recipe: Recipe, counted: Cost, found: dict[str, Any]) -> list[str]:
    memory, lines = counted.memory, [f"training: {counted.training_gflop:.3f} GFLOP an image (two a multiply-add)"]
    if counted.teacher_summary:
        lines.append(f"teacher: {counted.teacher_summary}")
    if counted.whole_image_gflop is not None:
        lines.append(f"the network on a whole image: {counted.whole_image_gflop:.3f} GFLOP")
    fixed = memory.weights_mib + memory.gradients_mib + memory.moments_mib
    if isinstance(recipe, PretrainConfig) and recipe.method.name == "beit":
        lines.append("the tokenizer's file is not counted")
    lines.append(
        f"memory: {fixed:.0f} MiB for weights, gradients and moments; kept for the backward "
        f"{memory.fp32_mib_per_image:.1f} MiB an image in fp32, {memory.bf16_mib_per_image:.1f} in bf16"
    )
    lines.append(
        f"a process with {found['images_of_a_process']:,} images at once: "
        f"{_size(found['process_fp32_mib'])} in fp32, {_size(found['process_bf16_mib'])} in bf16, kernels' workspace on top"
    )
    if found["measured"] is not None:
        speed = found["measured"]
        lines.append(
            f"measured: {speed['images_per_s']:.1f} images/s, batch {speed['batch_size']}, {speed['steps']} steps on "
            f"{speed['device']} ({speed['cpu']}, {speed['threads']} threads)"
        )
    if found["total_petaflop"] is not None:
        lines.append(f"{config.images:,} images x {found['epochs']:g} epochs: {found['total_petaflop']:,.1f} PFLOP")
    if found["hours"] is not None:
        lines.append(f"hours: {found['hours']:,.2f} at {found['images_per_s']:,.1f} images/s")
    else:
        lines.append("hours: give --images N and --images-per-second R, or --measure")
    return lines


def _size(mib: float) -> str:
    return f"{mib / 1024:.1f} GiB" if mib >= 1024 else f"{mib:.0f} MiB"
