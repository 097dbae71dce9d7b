"""Images per second of every pre-training method beside MAE's, in interleaved blocks of one run, and what explains them.

CPU:  python benchmarks/method_cost.py --encoder vit_tiny --batch-size 16
      python benchmarks/method_cost.py configs/pretrain/*_micro.yaml --batch-size 32

Each method is warmed up, then all take turns, so that what else the machine does hits all alike. The figure is the median
over blocks, the ratio the median of the ratios to MAE block by block. Beside it stands the ratio of the arithmetic that
`edgemim cost` counts, teacher and backward included: a method that takes more than 1.25 times what that explains is
marked. Images and all weights are random (arithmetic does not depend on them); loading images is left out.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
import tyro

from edgemim.analysis.cost import count_cost
from edgemim.analysis.throughput import timed, training_step
from edgemim.commands.cost import compose, input_shape, read_recipe
from edgemim.commands.pretrain import PretrainConfig
from edgemim.config import Config
from edgemim.edge.machine import LoadMeter, describe
from edgemim.errors import EdgemimError, UserError
from edgemim.methods import DeepMimConfig, MethodConfig, MffConfig
from edgemim.models.sizes import SIZES
from edgemim.teachers import CheckpointTeacher, EfficientNetLiteTeacher, TimmTeacher
from edgemim.training.distributed import pick_device

_EXPLAINED = 1.25


class MethodCostConfig(Config):
    """Measure every method's throughput beside MAE's."""

    files: Annotated[tuple[Path, ...], tyro.conf.Positional] = ()
    """Recipes to measure, MAE's among them; default every method with its default settings."""
    encoder: str = "vit_tiny"
    """A named size, where no files are given."""
    batch_size: int = 16
    """Images of a step."""
    steps: int = 1
    """Steps of one block."""
    blocks: int = 7
    """Blocks of each method."""
    device: str = "auto"
    """auto, cpu or cuda."""
    masked_teacher: str = "vit_base_patch16_224"
    """timm's name of the teacher on visible patches (D-MAE, D2-MAE); empty for one of the student's own size."""
    only: tuple[str, ...] = ()
    """Methods to measure beside MAE; default all."""
    out: Path | None = None
    """File for the JSON."""


@dataclass(frozen=True)
class Case:
    """A method that is measured."""

    name: str
    training_gflop: float
    teacher_gflop: float
    step: Callable[[], None]


def recipes(config: MethodCostConfig) -> dict[str, PretrainConfig]:
    """What is measured, MAE on a plain encoder first."""
    found = {path.stem: _read(path, config) for path in config.files} or defaults(config)
    plain = {name: recipe.method.name == "mae" and recipe.encoder.name == "vit" for name, recipe in found.items()}
    return dict(sorted(found.items(), key=lambda item: not plain[item[0]]))


def _read(path: Path, config: MethodCostConfig) -> PretrainConfig:
    recipe = read_recipe(path)
    if not isinstance(recipe, PretrainConfig):
        raise UserError(f"{path} is no recipe of pretrain")
    return recipe.model_copy(update={"batch_size": config.batch_size, "accumulate": 1, "device": config.device})


def defaults(config: MethodCostConfig) -> dict[str, PretrainConfig]:
    """One configuration a method, each as it is by default; methods with several targets, once for each."""
    union = get_args(MethodConfig)[0]
    methods: dict[str, Any] = {}
    for kind in get_args(union) or (union,):
        method = kind()
        methods[method.name] = method
    del methods["composed"]  # by default it is MAE
    methods["mff, low-pass"] = MffConfig(target="low_pass")
    methods["deepmim, hybrid"] = DeepMimConfig(target="hybrid")
    methods["deepmim, features"] = DeepMimConfig(target="feature")
    chosen = {name: method for name, method in methods.items() if not config.only or name in (*config.only, "mae")}
    named = config.masked_teacher
    teachers = {
        "features": EfficientNetLiteTeacher(),
        "masked": TimmTeacher(model=named, pretrained=False) if named else CheckpointTeacher(),
        "reconstruction": CheckpointTeacher(),
    }
    return {
        name: PretrainConfig(
            encoder=SIZES[config.encoder],  # pyright: ignore[reportArgumentType]
            method=method,
            teacher=teachers.get(method.teacher_kind),
            batch_size=config.batch_size,
            device=config.device,
        )
        for name, method in chosen.items()
    }


def open_case(name: str, recipe: PretrainConfig, device: torch.device) -> Case:
    """A method's arithmetic and its step."""
    counted = count_cost(lambda: compose(recipe, 0), input_shape(recipe))
    torch.manual_seed(0)
    objective, teacher = compose(recipe, 0, runs=True)
    if teacher is not None:
        teacher.to(device)
    step = training_step(objective.to(device), recipe, device, input_shape(recipe))
    return Case(name, counted.training_gflop, counted.parts["teacher"].forward_gflop, step)


def open_cases(config: MethodCostConfig, device: torch.device) -> list[Case]:
    """All methods that can be composed, warmed up; the others are named with their reason."""
    cases = []
    for name, recipe in recipes(config).items():
        try:
            case = open_case(name, recipe, device)
        except EdgemimError as error:
            print(f"left out: {name}: {error}")
            continue
        timed(case.step, 2, device)
        cases.append(case)
    return cases


def row(case: Case, seconds: list[float], base: Case, base_seconds: list[float], images: int) -> dict[str, Any]:
    """One method's figures."""
    time_ratio = statistics.median(own / other for own, other in zip(seconds, base_seconds, strict=True))
    flop_ratio = case.training_gflop / base.training_gflop
    return {
        "method": case.name,
        "training_gflop": case.training_gflop,
        "teacher_gflop": case.teacher_gflop,
        "images_per_s": images / statistics.median(seconds),
        "rate_to_mae": 1 / time_ratio,
        "time_to_mae": time_ratio,
        "flop_to_mae": flop_ratio,
        "time_over_flop": time_ratio / flop_ratio,
        "unexplained": time_ratio / flop_ratio > _EXPLAINED,
        "block_seconds": seconds,
    }


def show(rows: list[dict[str, Any]]) -> None:
    """Print the rows as a table in Markdown."""
    print("| method | GFLOP an image | of it teacher | images/s | time / MAE's | GFLOP / MAE's | time / GFLOP | |")
    print("|---|---|---|---|---|---|---|---|")
    for line in rows:
        print(
            f"| {line['method']} | {line['training_gflop']:.2f} | {line['teacher_gflop']:.2f} "
            f"| {line['images_per_s']:.1f} | {line['time_to_mae']:.2f} | {line['flop_to_mae']:.2f} "
            f"| {line['time_over_flop']:.2f} | {'slower than explained' if line['unexplained'] else ''} |"
        )


def main(config: MethodCostConfig) -> None:
    """Measure, print a table and write the JSON."""
    device = pick_device(config.device)
    started, cases = time.perf_counter(), open_cases(config, device)
    print(f"{len(cases)} methods composed and warmed up in {time.perf_counter() - started:.0f} s", flush=True)
    seconds: list[list[float]] = [[] for _ in cases]
    load = LoadMeter()
    for _ in range(config.blocks):
        for case, times in zip(cases, seconds, strict=True):
            times.append(timed(case.step, config.steps, device))
    taken = load.stop()
    images = config.steps * config.batch_size
    rows = [row(case, times, cases[0], seconds[0], images) for case, times in zip(cases, seconds, strict=True)]
    show(rows)
    machine = describe()
    threads = torch.get_num_threads()
    print(f"{machine['cpu']}, {machine['usable_cpus']} CPUs usable, {threads} threads, torch {torch.__version__}")
    print(f"other processes took {taken.foreign:.0%} of the CPUs, this one {taken.own:.0%}, over {taken.seconds:.0f} s")
    if config.out is not None:
        result = {"config": config.model_dump(mode="json"), "machine": machine, "threads": threads, "rows": rows}
        config.out.write_text(json.dumps({**result, "foreign_load": taken.foreign}, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(MethodCostConfig))
