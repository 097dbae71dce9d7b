"""INT8 files of an artifact, one for each target, each judged against FP32 before it may stay.

No single INT8 file is fastest everywhere: ONNX Runtime wants dynamic quantisation, OpenVINO wants NNCF's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pydantic

from edgemim.config import Config
from edgemim.edge.artifact import Artifact, ModelFile, describe_file
from edgemim.edge.machine import INT8_FLAGS, cpu_flags
from edgemim.edge.runtime import open_session
from edgemim.errors import UserError
from edgemim.export.fidelity import Portions, Speed, summarise, thread_counts, time_models
from edgemim.export.onnxruntime import inner_convolutions, quantize_convolutions_onnx, quantize_dynamic_onnx
from edgemim.export.openvino import missing_packages, quantize_transformer, require_packages
from edgemim.export.parity import chunks
from edgemim.tasks.comparison import Comparison, Limits
from edgemim.tasks.task import Task

Target = Literal["onnx-int8", "openvino-int8"]
Isa = Literal["auto", "vnni", "portable"]
_RUNTIME = {"onnx-int8": "onnxruntime", "openvino-int8": "openvino"}
_ATTEMPTS = 3
_RECIPES = {
    ("onnx-int8", False): "ONNX Runtime dynamic, per channel, MatMul and Gemm",
    ("onnx-int8", True): "ONNX Runtime, per channel: Conv but the patch embedding static, MatMul and Gemm dynamic",
    ("openvino-int8", False): "NNCF post-training, model_type=TRANSFORMER, patch embedding in float",
}


class Int8Config(Config):
    """How INT8 files are made, and what they must reach to stay."""

    targets: tuple[Target, ...] = ()
    """Files to make; default onnx-int8, and openvino-int8 where openvino and nncf are installed."""
    isa: Isa = "auto"
    """vnni: full 8-bit weights; portable: 7-bit weights, which no CPU's 16-bit sums overflow; auto: as this CPU can."""
    calibration: int = pydantic.Field(default=300, ge=1)
    """Training images that activation ranges are taken from, where a recipe needs them (all, if there are fewer)."""
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


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What became of one target.

    Attributes:
        key: the target.
        outcome: 'kept', 'forced' or 'refused'.
        reasons: what the gate holds against it.
        report: the figures, as the manifest and run.json keep them; scores and agreement in percent.
    """

    key: str
    outcome: Literal["kept", "forced", "refused"]
    reasons: tuple[str, ...]
    report: dict[str, Any]


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


@dataclasses.dataclass(frozen=True)
class Maker:
    """How the files of one target are made and measured, for a kind of task.

    Attributes:
        build: writes them into a folder; gives their manifest entries by key, and what to record of the recipe.
        measure: their answers beside FP32's, and their speed for each thread count.
    """

    build: Callable[[Artifact, Target, Path, Any, Int8Config], tuple[dict[str, ModelFile], dict[str, Any]]]
    measure: Callable[[Artifact, Target, Any, Int8Config], tuple[Comparison, list[Speed]]]


def quantize_artifact(
    artifact: Artifact, task: Task, config: Int8Config, *, overwrite: bool = False, maker: Maker | None = None
) -> list[Verdict]:
    """Make and judge each target; what passes (or is forced) joins the artifact, of the rest nothing stays.

    The FP32 file is only read. `artifact.manifest` is replaced when a file joins.

    Raises:
        UserError: a target is there already and `overwrite` is not set; the task's images or labels do not fit.
        MissingLibrary: a target was asked for whose packages are missing.
        ModelRefused: a quantiser or runtime cannot handle the model.
    """
    targets = pick_targets(config.targets)
    there = [key for key in targets if key in artifact.manifest.files]
    if there and not overwrite:
        raise UserError(f"{artifact.folder} has {' and '.join(there)} already; --overwrite makes it again")
    if task.labels != artifact.manifest.labels:
        raise UserError(f"the classes of the run are not those of {artifact.folder}; give the run it was exported from")
    return [_quantize(artifact, key, task, config, maker or Maker(_build, _measure)) for key in targets]


def _quantize(artifact: Artifact, key: Target, task: Task, config: Int8Config, maker: Maker) -> Verdict:
    with _trial(artifact.folder) as trial:
        entries, recipe = maker.build(artifact, key, trial, task, config)
        files = {**artifact.manifest.files, **entries}
        candidate = Artifact(artifact.folder, artifact.manifest.model_copy(update={"files": files}))
        comparison, speeds = maker.measure(candidate, key, task, config)
        limits = limits_of(task, config)
        reasons = tuple(objections(comparison, speeds, limits))
        outcome = "kept" if not reasons else "forced" if config.force else "refused"
        report = {
            **_report(comparison, speeds, limits),
            **recipe,
            "isa": entries[key].isa,
            "runtime": _RUNTIME[key],
            "size_bytes": sum(candidate.size_bytes(name) for name in entries),
            "size_bytes_fp32": sum(candidate.size_bytes(name.replace(key, "onnx-fp32", 1)) for name in entries),
            "outcome": outcome,
            "forced": outcome == "forced",
            "reasons": list(reasons),
        }
        if outcome != "refused":
            _install(artifact, key, entries, report)
    return Verdict(key, outcome, reasons, report)


@contextlib.contextmanager
def _trial(folder: Path) -> Iterator[Path]:
    """A folder inside the artifact for a file that is not part of it yet; gone at the end, whatever happens."""
    trial = Path(tempfile.mkdtemp(prefix=".trial-", dir=folder))
    try:
        yield trial
    except OSError as error:
        raise UserError(f"cannot write below {folder}: {error.strerror or error}; free space and try again") from error
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def _build(
    artifact: Artifact, key: Target, trial: Path, task: Task, config: Int8Config
) -> tuple[dict[str, ModelFile], dict[str, Any]]:
    isa = pick_isa(config.isa)
    source = artifact.file("onnx-fp32")
    convolutional = key == "onnx-int8" and bool(inner_convolutions(source))
    recipe: dict[str, Any] = {"recipe": _RECIPES[key, convolutional], "calibration_images": 0}
    full_range, inputs, name = isa == "vnni", [], artifact.manifest.input_name
    if convolutional or key == "openvino-int8":
        images, digest = calibration_images(task, config.calibration)
        inputs = list(chunks(images, artifact.manifest.input_shape[0] or 1))
        recipe |= {"calibration_images": len(images), "calibration_sha256": digest}
    if key == "onnx-int8":
        target = trial / "model-int8.onnx"
        if convolutional:
            quantize_convolutions_onnx(source, target, inputs, input_name=name, full_range=full_range)
        else:
            quantize_dynamic_onnx(source, target, full_range=full_range)
    else:
        target = trial / "openvino-int8.xml"
        quantize_transformer(source, target, inputs, input_name=name, full_range=full_range)
    return {key: describe_int8(artifact.folder, target, isa)}, recipe


def describe_int8(folder: Path, path: Path, isa: Isa) -> ModelFile:
    """The manifest entry of an INT8 file that lies in a folder inside the artifact's, weights beside OpenVINO's."""
    place = path.relative_to(folder).as_posix()
    openvino = path.suffix == ".xml"
    return describe_file(
        folder,
        place,
        format="openvino" if openvino else "onnx",
        precision="int8",
        companions=[place.removesuffix(".xml") + ".bin"] if openvino else [],
        isa=isa,
        notes="8-bit weights" if isa == "vnni" else "7-bit weights, safe on CPUs without 8-bit dot products",
    )


def calibration_images(task: Task, count: int) -> tuple[np.ndarray, str]:
    """Up to `count` normalised training images, float32 [n, 3, s, s], and the SHA-256 of their values.

    Raises UserError if there are none.
    """
    batches = list(task.calibration_batches(count))
    if not batches:
        raise UserError("there are no training images to calibrate on; give --data DIR with images")
    images = np.ascontiguousarray(np.concatenate(batches))
    return images, hashlib.sha256(images.tobytes()).hexdigest()


def _measure(candidate: Artifact, key: Target, task: Task, config: Int8Config) -> tuple[Comparison, list[Speed]]:
    manifest, runtime = candidate.manifest, _RUNTIME[key]
    batch = manifest.input_shape[0] or 1
    fp32 = Portions(open_session(candidate, "onnx-fp32", runtime=runtime), batch)
    comparison = task.compare(fp32, Portions(open_session(candidate, key), batch), config.images)
    inputs = {manifest.input_name: task.example_input(batch).numpy()}
    speeds = []
    for threads in thread_counts(config.threads):
        fp32 = open_session(candidate, "onnx-fp32", runtime=runtime, threads=threads)
        int8 = open_session(candidate, key, threads=threads)
        speeds.append(time_models(fp32, int8, inputs, seconds=config.seconds, attempts=_ATTEMPTS))
    return comparison, speeds


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


def _report(comparison: Comparison, speeds: Sequence[Speed], limits: Limits) -> dict[str, Any]:
    return {
        **dataclasses.asdict(comparison),
        "drop_points": comparison.drop_points,
        **summarise(speeds),
        "speeds": [{**dataclasses.asdict(speed), "verdict": speed.verdict} for speed in speeds],
        "thresholds": dataclasses.asdict(limits) | {"speed_ratio_below": 1.0},
    }


def _install(artifact: Artifact, key: str, entries: dict[str, ModelFile], report: dict[str, Any]) -> None:
    """Move judged files from their trial folder into the artifact, then name them in the manifest."""
    installed = {}
    for name, entry in entries.items():
        moved = {path: Path(path).name for path in (entry.path, *entry.companions)}
        for source, target in moved.items():
            os.replace(artifact.folder / source, artifact.folder / target)
        companions = {moved[path]: digest for path, digest in entry.companions.items()}
        installed[name] = entry.model_copy(update={"path": moved[entry.path], "companions": companions})
    manifest = artifact.manifest
    artifact.manifest = manifest.model_copy(
        update={
            "files": {**manifest.files, **installed},
            "quantization": {**manifest.quantization, key: report},
        }
    )
    artifact.save_manifest()
