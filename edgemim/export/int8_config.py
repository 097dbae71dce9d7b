"""What a user says about INT8: targets, instructions, smoothing, and what the files must reach to stay."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pydantic

from edgemim.config import Config
from edgemim.edge.machine import INT8_FLAGS, cpu_flags
from edgemim.export.openvino import missing_packages, require_packages
from edgemim.export.smoothing import DEFAULT_ALPHA
from edgemim.tasks.comparison import Limits
from edgemim.tasks.task import Task

Target = Literal["onnx-int8", "openvino-int8"]
Isa = Literal["auto", "vnni", "portable"]


class Int8Config(Config):
    """How INT8 files are made, and what they must reach to stay."""

    targets: tuple[Target, ...] = ()
    """Files to make; default onnx-int8, and openvino-int8 where openvino and nncf are installed."""
    isa: Isa = "auto"
    """vnni: full 8-bit weights; portable: 7-bit weights, which no CPU's 16-bit sums overflow; auto: as this CPU can."""
    execution: Literal["f32", "bf16"] = "f32"
    """What OpenVINO computes the float parts of its INT8 file in; bf16 needs a CPU with its instructions, and is faster
    there. The gate judges the file as it runs."""
    smooth: bool = True
    """Move outlier channels from activations into weights first (SmoothQuant); the function stays bit for bit."""
    smooth_alpha: float = pydantic.Field(default=DEFAULT_ALPHA, ge=0, le=1)
    """How much of the activations' range moves: 0 nothing, 1 all of it."""
    search: bool = True
    """Where INT8 misses the gate in quality, search the fewest layers that must stay in float for it to pass."""
    calibration: int = pydantic.Field(default=300, ge=1)
    """Training images that activation ranges are taken from (all, if there are fewer)."""
    images: int = pydantic.Field(default=500, ge=1)
    """Held-out images that INT8 is judged on (all, if there are fewer)."""
    max_drop: float | None = pydantic.Field(default=None, ge=0)
    """Largest loss of the task's metric, percentage points; default 1 of top-1 accuracy, 0.5 of mIoU, 1 of a tracker's
    mean IoU."""
    min_agreement: float | None = pydantic.Field(default=None, ge=0, le=100)
    """Least share of images (of pixels, in segmentation) where INT8 and FP32 name the same class, percent; default 99. Of
    a tracker, of pairs whose two boxes overlap by 0.8; default 90."""
    min_cosine: float | None = pydantic.Field(default=None, ge=-1, le=1)
    """Least mean cosine of INT8's and FP32's logits; default 0.999, of a tracker's score maps 0.99."""
    threads: tuple[int, ...] = (1, 0)
    """CPU threads that the speed is measured with; 0 is all usable CPUs. INT8 must be faster with each."""
    seconds: float = pydantic.Field(default=1.5, gt=0)
    """Least time that each model runs for, for each thread count, over 5 interleaved blocks."""
    force: bool = False
    """Keep INT8 files that the gate refuses; the manifest records it with the reasons."""
    data: Path | None = None
    """Images to use instead of the run's own: one folder a class, or a folder with train/ and val/."""
    val: Path | None = None
    """Held-out images, where they are not beside those of --data."""


def pick_targets(asked: Sequence[Target]) -> tuple[Target, ...]:
    """The targets to make. Raises MissingLibrary if one was asked for whose packages are not installed."""
    if not asked:
        return ("onnx-int8",) if missing_packages(quantize=True) else ("onnx-int8", "openvino-int8")
    if "openvino-int8" in asked:
        require_packages(quantize=True)
    return tuple(dict.fromkeys(asked))


def pick_isa(asked: Isa, flags: Sequence[str] | None = None) -> Literal["vnni", "portable"]:
    """'vnni' where the CPU (its `flags` if given) adds 8-bit products in 32 bits, else 'portable', unless asked."""
    if asked != "auto":
        return asked
    return "vnni" if INT8_FLAGS & set(cpu_flags() if flags is None else flags) else "portable"


def limits_of(task: Task, config: Int8Config) -> Limits:
    """The task's limits, replaced where the configuration says otherwise."""
    asked = {field.name: getattr(config, field.name) for field in dataclasses.fields(Limits)}
    return dataclasses.replace(task.limits, **{name: value for name, value in asked.items() if value is not None})
