"""`edgemim analyze ...`: what the features of frozen networks are like; one config class and one function a sub-verb."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pydantic
import torch
import tyro
import yaml
from rich.console import Console
from rich.table import Table

from edgemim.analysis.token_diversity import (
    KINDS,
    Diversity,
    measure_diversity,
    plot_diversity,
    ranking,
    teacher_features,
)
from edgemim.config import Config, from_mapping
from edgemim.data.image_set import ImageSet
from edgemim.data.labelled import spread_over_classes
from edgemim.data.loader import Batch, eval_loader
from edgemim.data.sources import find_sources
from edgemim.edge.images import Preprocessing
from edgemim.edge.report import save_figure
from edgemim.errors import UserError
from edgemim.run import RunRecord, default_folder, prepare_folder, write_text
from edgemim.teachers import CheckpointTeacher, EfficientNetLiteTeacher, Teacher, TeacherConfig, TimmTeacher
from edgemim.training.distributed import pick_device

AnyTeacher = TimmTeacher | CheckpointTeacher | EfficientNetLiteTeacher


class _Named(Config):
    """Reads a teacher as a configuration file does."""

    teacher: TeacherConfig = EfficientNetLiteTeacher()
    """The teacher."""


class AnalyzeConfig(Config):
    """What every analysis shares: the images that it looks at, and where its results go."""

    data: Path | None = None
    """Folder of images, CSV file, tar shards or Hugging Face dataset; of a set with splits, the held-out images."""
    images: int = pydantic.Field(default=256, ge=2)
    """Images of the sample: the same number of every class where there are classes."""
    image_size: int = pydantic.Field(default=224, ge=8)
    """Side of the images in pixels: short side resized, centre square."""
    seed: int = pydantic.Field(default=0, ge=0)
    """Seed of the sample (and of random weights)."""
    out: Path | None = None
    """Folder for the results; default runs/VERB-DATE-TIME."""
    overwrite: bool = False
    """Lose what --out holds."""
    batch_size: int = pydantic.Field(default=32, ge=1)
    """Images at once."""
    workers: int = pydantic.Field(default=0, ge=0)
    """Processes that read images."""
    device: str = "auto"
    """auto, cpu or cuda."""


class TokenDiversityConfig(AnalyzeConfig):
    """How diverse the tokens of teachers are within an image (Img2Vec's measure), with and without centring.

    Example: edgemim analyze token-diversity --teacher efficientnet_lite0 --teacher resnet50 --data photos/
    """

    teacher: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """A teacher, repeated for several: a timm name, efficientnet_lite0, a run folder, or all of a teacher's keys as
    '{name: timm, model: resnet50, pretrained: false}' or '{name: checkpoint, model: resnet50, path: FILE}'."""
    patch_size: int = pydantic.Field(default=16, ge=1)
    """Side of the student's patch in pixels: with --image-size it gives the grid that all teachers meet."""

    @pydantic.field_validator("teacher", mode="before")
    @classmethod
    def _mappings_as_text(cls, value: object) -> object:
        """A YAML list may hold whole mappings."""
        if isinstance(value, str):
            value = (value,)
        if not isinstance(value, (list, tuple)):
            return value
        return tuple(_as_text(entry) if isinstance(entry, Mapping) else entry for entry in value)


def token_diversity(config: TokenDiversityConfig) -> dict[str, Any]:
    """Measure and rank teachers; writes token_diversity.json, a picture and run.json, returns the results.

    Raises UserError on an unknown teacher or one that does not meet the grid, and on bad data.
    """
    if not config.teacher:
        raise UserError("give --teacher NAME, once for each teacher")
    if config.image_size % config.patch_size:
        raise UserError(f"image_size {config.image_size} is not a multiple of patch_size {config.patch_size}")
    teachers = [read_teacher(text) for text in config.teacher]
    folder = open_sample(config)
    device = pick_device(config.device)
    side = config.image_size // config.patch_size
    with open_analysis("analyze token-diversity", config) as record:
        found: dict[str, Diversity] = {}
        facts: dict[str, dict[str, Any]] = {}
        for place, teacher in enumerate(teachers):
            torch.manual_seed(config.seed)
            network = teacher.build(config.image_size, (side, side)).to(device)
            name = _label(teacher, network, found)
            print(f"{place + 1} of {len(teachers)}: {network.summary}", flush=True)
            found[name] = measure_diversity(_features(network, folder, config, device))
            facts[name] = {"summary": network.summary, "stage": network.stage, "input_px": network.input_size[0]}
        rows = {name: {**facts[name], **result.as_dict()} for name, result in found.items()}
        order = {kind: ranking(found, kind) for kind in KINDS}
        record.results.update(images=len(folder), grid=[side, side], ranking=order, teachers=rows)
        full = {name: {**facts[name], **result.as_dict(values=True)} for name, result in found.items()}
        content = {"seed": config.seed, "data": str(config.data), **record.results, "teachers": full}
        write_text(record.folder / "token_diversity.json", json.dumps(content, indent=1) + "\n")
        save_figure(plot_diversity(found), record.folder / "token_diversity.png")
    _print_diversity(rows, order, len(folder), side)
    print(f"every figure, and a picture: {record.folder}")
    best = config.teacher[list(found).index(order["centred"][0])]
    print(f"next: edgemim pretrain --method img2vec --teacher {_flags_of(best)} --data {config.data}")
    return record.results


def open_analysis(verb: str, config: AnalyzeConfig) -> RunRecord:
    """The record of an analysis in its own folder. Raises UserError if the folder holds something or cannot be written."""
    folder = config.out or default_folder(verb.replace(" ", "-"))
    prepare_folder(folder, overwrite=config.overwrite)
    return RunRecord(verb, folder, config)


def open_sample(config: AnalyzeConfig) -> ImageSet:
    """The seeded sample of images, balanced over classes. Raises UserError without images."""
    if config.data is None:
        raise UserError("give --data DIR, a folder of images")
    folder = find_sources(config.data).measured.open()
    order = np.random.default_rng(config.seed).permutation(len(folder))
    chosen = order[spread_over_classes(folder.labels[order], config.images)]
    return folder.select(np.sort(chosen))


def sample_batches(folder: ImageSet, config: AnalyzeConfig) -> Iterable[Batch]:
    """The sample as uint8 batches, seen as a student sees images in evaluation."""
    preprocessing = Preprocessing(image_size=config.image_size, crop_pct=1.0)
    return eval_loader(folder, preprocessing, batch_size=config.batch_size, workers=config.workers)


def read_teacher(text: str, flag: str = "--teacher") -> AnyTeacher:
    """A teacher from its name, its run folder or its keys in YAML. Raises UserError on what names none, with the flag."""
    value: Any = text
    if text.lstrip().startswith("{"):
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UserError(f"{flag} {text} is not valid YAML: {' '.join(str(error).split())}") from error
    elif Path(text).is_dir():
        value = CheckpointTeacher(path=Path(text))
    elif Path(text).is_file():
        raise UserError(
            f"{text} does not say what network it holds; give {flag} '{{name: checkpoint, model: TIMM_NAME, path: {text}}}'"
        )
    return from_mapping({"teacher": value}, _Named, where=f"{flag} {text}").teacher


def _features(
    network: Teacher, folder: ImageSet, config: AnalyzeConfig, device: torch.device
) -> Callable[[], Iterable[torch.Tensor]]:
    return lambda: teacher_features(network, sample_batches(folder, config), device)


def _label(teacher: AnyTeacher, network: Teacher, taken: Iterable[str]) -> str:
    """A short name, longer where several teachers would share it."""
    if isinstance(teacher, EfficientNetLiteTeacher):
        name = f"efficientnet_{teacher.variant}"
    elif isinstance(teacher, CheckpointTeacher):
        name = teacher.path.name if teacher.path else "checkpoint"
    else:
        name = teacher.model if teacher.pretrained else f"{teacher.model} (random)"
    used = set(taken)
    if name in used:
        name = f"{name}, stage {network.stage} at {network.input_size[0]} px"
    number = 1 + sum(other == name or other.startswith(f"{name} #") for other in used)
    return name if number == 1 else f"{name} #{number}"


def _flags_of(text: str) -> str:
    """How `pretrain` is given the same teacher."""
    teacher = read_teacher(text)
    if not text.lstrip().startswith("{") and not isinstance(teacher, CheckpointTeacher):
        return text
    keys = teacher.model_dump(mode="json", exclude_defaults=True)
    flags = [f"--teacher.{key.replace('_', '-')} {value}" for key, value in keys.items() if key != "pretrained"]
    return " ".join([teacher.name, *flags]) if teacher.name != "efficientnet_lite" else _lite(teacher, flags)


def _lite(teacher: AnyTeacher, flags: list[str]) -> str:
    assert isinstance(teacher, EfficientNetLiteTeacher)
    return " ".join([f"efficientnet_{teacher.variant}", *(flag for flag in flags if "variant" not in flag)])


def _as_text(entry: Mapping[str, Any]) -> str:
    return yaml.safe_dump(dict(entry), default_flow_style=True, sort_keys=False, width=10_000).strip()


def _print_diversity(rows: dict[str, dict[str, Any]], order: dict[str, list[str]], images: int, side: int) -> None:
    print(f"token diversity of {side} x {side} tokens of {images} images: mean ± deviation over images (rank)")
    heads = ("teacher", "features", *KINDS, *(f"effective rank, {kind}" for kind in KINDS))
    table = Table(*heads, box=None, pad_edge=False)
    for column in table.columns:
        column.no_wrap = True
    for name in order["centred"]:
        row = rows[name]
        spread, rank = row["diversity"], row["effective_rank"]
        table.add_row(
            name,
            f"stage {row['stage']}, {row['channels']} channels, {row['input_px']} px",
            *(
                f"{spread[kind]['mean']:.3f} ± {spread[kind]['sd']:.3f} ({order[kind].index(name) + 1})"
                for kind in KINDS
            ),
            *(f"{rank[kind]['mean']:.1f} ± {rank[kind]['sd']:.1f}" for kind in KINDS),
        )
    # A file or pipe has no width: nothing is cut off there.
    Console(highlight=False, width=None if sys.stdout.isatty() else 200).print(table)
