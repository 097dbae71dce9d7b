"""The gate of INT8 files: what is measured of one beside FP32, and what is held against it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemim.edge.artifact import Artifact
from edgemim.edge.runtime.session import READERS
from edgemim.edge.tracking.inference import TEMPLATE_SUFFIX
from edgemim.export.fidelity import Speed, summarise
from edgemim.export.int8_config import Int8Config, limits_of
from edgemim.export.int8_files import Sources
from edgemim.export.sensitivity import block_cosines
from edgemim.export.smoothing import Inputs
from edgemim.tasks.comparison import Comparison, Limits
from edgemim.tasks.task import Task

_SPREAD = 3
"""How many times the contrast of calibration images may be that of held-out ones, or the reverse."""
COSINE_INPUTS = 16
"""Held-out inputs that the cosine of each block is taken from."""


@dataclass(frozen=True)
class Maker:
    """What quantising needs to know of a kind of task.

    Attributes:
        sources: the artifact's FP32 graphs with calibration inputs, and what to record of these.
        compare: answers of a file (or pair of files) beside FP32's on the same runtime.
        time: its speed beside FP32's for each thread count.
        held_out: held-out inputs, so many, of the graph of each suffix.
    """

    sources: Callable[[Artifact, Any, Int8Config], Sources]
    compare: Callable[[Artifact, str, Any, Int8Config], Comparison]
    time: Callable[[Artifact, str, Any, Int8Config], list[Speed]]
    held_out: Callable[[Artifact, Any, int], dict[str, list[Inputs]]]


def measure_file(
    artifact: Artifact, key: str, comparison: Comparison, task: Task, config: Int8Config, maker: Maker
) -> dict[str, Any]:
    """All figures of a file beside FP32 on the same runtime, and under `reasons` what the gate holds against it."""
    limits = limits_of(task, config)
    speeds = maker.time(artifact, key, task, config)
    suffixes = [name.removeprefix(key) for name in artifact.manifest.files if name in (key, key + TEMPLATE_SUFFIX)]
    inputs = maker.held_out(artifact, task, COSINE_INPUTS)
    cosine = {}
    for suffix in suffixes:
        found = block_cosines(artifact.file("onnx-fp32" + suffix), artifact.file(key + suffix), inputs[suffix])
        cosine |= {f"{suffix.removeprefix('-')} {name}".strip(): value for name, value in found.items()}
    return {
        **dataclasses.asdict(comparison),
        "drop_points": comparison.drop_points,
        **summarise(speeds),
        "speeds": [{**dataclasses.asdict(speed), "verdict": speed.verdict} for speed in speeds],
        "block_cosine": cosine,
        "thresholds": dataclasses.asdict(limits) | {"speed_ratio_below": 1.0},
        "isa": artifact.entry(key).isa,
        "runtime": runtime_of(artifact, key),
        "size_bytes": sum(artifact.size_bytes(key + suffix) for suffix in suffixes),
        "size_bytes_fp32": sum(artifact.size_bytes("onnx-fp32" + suffix) for suffix in suffixes),
        "reasons": list(objections(comparison, speeds, limits)),
    }


def runtime_of(artifact: Artifact, key: str) -> str:
    """The runtime that a file was made for."""
    return READERS[artifact.entry(key).format][0]


def calibration_faults(calibration: Sequence[Inputs], held_out: Sequence[Inputs]) -> list[str]:
    """What speaks against a calibration set, whatever came of it: pixels spread quite unlike those of held-out images.

    Where black images, noise or pixels in another scale calibrate a model, leaving enough of it in float would hide it.
    """
    there, here = (_contrast(inputs) for inputs in (held_out, calibration))
    if here <= _SPREAD * there and there <= _SPREAD * here:
        return []
    times = here / max(there, 1e-9)
    shown = f"{times:.2f}" if times < 1 else f"{times:.0f}"
    return [f"calibration images with {shown} times the contrast of held-out ones (1/{_SPREAD} to {_SPREAD})"]


def _contrast(inputs: Sequence[Inputs]) -> float:
    """Standard deviation of the pixels of all images, of 64 inputs at most."""
    chosen = inputs[:: max(1, len(inputs) // 64)]
    return float(
        np.std(np.concatenate([array.ravel() for given in chosen for array in given.values() if array.ndim == 4]))
    )


def objections(comparison: Comparison, speeds: Sequence[Speed], limits: Limits) -> Iterator[str]:
    """What the gate holds against an INT8 model: nothing, if it may stay. Figures that are no numbers count against it."""
    drop = comparison.drop_points
    if drop is not None and not drop <= limits.max_drop:
        yield f"{comparison.metric} drop of {drop:.2f} points (at most {limits.max_drop:g})"
    if not comparison.agreement >= limits.min_agreement:
        share = f"{comparison.agreement:.2f} % of the {comparison.answers}"
        yield f"agreement of {share} (at least {limits.min_agreement:g} %)"
    if not comparison.cosine >= limits.min_cosine:
        yield f"cosine of {comparison.cosine:.5f} (at least {limits.min_cosine:g})"
    for speed in speeds:
        if speed.verdict == "slower":
            yield f"slower: {speed.ratio:.2f} of FP32's time with {speed.threads} threads (below 1)"
