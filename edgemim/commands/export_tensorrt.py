"""`edgemim export --tensorrt`: float16 and INT8 files for TensorRT, judged against FP32, and the lines that build them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgemim.edge.artifact import Artifact, ModelFile, describe_file
from edgemim.errors import EdgemimError, GateRefused, MissingLibrary, ModelRefused
from edgemim.export.int8_config import Int8Config, limits_of
from edgemim.export.int8_files import smoothed_sources
from edgemim.export.int8_gate import Maker, objections
from edgemim.export.quantize import SQUARE_MAKER, trial_folder
from edgemim.export.reduced import halve_onnx
from edgemim.export.tensorrt import build_with_rtx, quantize_symmetric, shapes_of, write_plan
from edgemim.export.tracking_int8 import TRACKER_MAKER
from edgemim.run import installed_versions
from edgemim.tasks import Task, TrackingTask

FOLDER = "tensorrt"
_PRECISIONS = ("fp32", "fp16", "int8")
_NOTES = {
    "fp32": "for TensorRT, computed in float32",
    "fp16": "for TensorRT, computed in float16 but for LayerNorm and Softmax, float32 in and out",
    "int8": "for TensorRT, symmetric INT8 with Q/DQ pairs, products of attention in float",
}


def write_tensorrt(
    artifact: Artifact, task: Task, calibration: int, images: int
) -> tuple[dict[str, Any], EdgemimError | None]:
    """Write ARTIFACT/tensorrt: the files that TensorRT's parser takes and trt_plan.json; name them in the manifest.

    INT8 is made of the smoothed model, whose function is the same. A precision whose answers differ too much from FP32's
    (on ONNX Runtime) is not kept.

    Returns:
        The plan's figures, and what was missing or refused: raised by the caller once the artifact is complete.
    """
    folder = artifact.folder / FOLDER
    folder.mkdir()
    config = Int8Config(calibration=calibration, images=images)
    maker = TRACKER_MAKER if isinstance(task, TrackingTask) else SQUARE_MAKER
    record = _write(artifact, folder, task, config, maker)
    fidelity, refused = _judge(artifact, task, config, maker)
    files = {
        path.stem.removeprefix("model-"): path
        for precision in _PRECISIONS
        for path in sorted(folder.glob(f"model-{precision}*.onnx"))
    }
    checked, fault = _check(files)
    write_plan(folder, files, checked=checked, fidelity=fidelity, versions=installed_versions())
    # What the parser refuses stays for the reader of the plan; no runtime is offered it.
    spoilt = {_precision(name) for name, state in checked.items() if state.get("refused")}
    taken = {name: path for name, path in files.items() if _precision(name) not in spoilt}
    entries = {f"tensorrt-{name}": _entry(artifact.folder, path, "tensorrt") for name, path in taken.items()}
    artifact.manifest = artifact.manifest.model_copy(update={"files": {**artifact.manifest.files, **entries}})
    artifact.save_manifest()
    return {**record, "fidelity": fidelity, "checked": checked}, refused or fault


def _write(artifact: Artifact, folder: Path, task: Task, config: Int8Config, maker: Maker) -> dict[str, Any]:
    """Write each graph in each precision; returns what to record of calibration and smoothing."""
    sources = maker.sources(artifact, task, config)
    for graph in sources.graphs:
        shutil.copyfile(graph.path, folder / f"model-fp32{graph.suffix}.onnx")
        halve_onnx(graph.path, folder / f"model-fp16{graph.suffix}.onnx")
    with trial_folder(artifact.folder) as place:
        smoothed = smoothed_sources(sources, place, config.smooth_alpha)
        for graph in smoothed.graphs:
            quantize_symmetric(graph.path, folder / f"model-int8{graph.suffix}.onnx", graph.inputs)
    return smoothed.record


def _precision(name: str) -> str:
    return name.partition("-")[0]


def _entry(folder: Path, path: Path, format: Any) -> ModelFile:
    precision = _precision(path.stem.removeprefix("model-"))
    place = path.relative_to(folder).as_posix()
    return describe_file(folder, place, format=format, precision=precision, notes=_NOTES[precision])


def _judge(
    artifact: Artifact, task: Task, config: Int8Config, maker: Maker
) -> tuple[dict[str, Any], GateRefused | None]:
    """Compare float16 and INT8 with FP32 on ONNX Runtime; files that are too far off are removed, with the reasons."""
    found, faults = {}, []
    for precision in _PRECISIONS[1:]:
        paths = sorted((artifact.folder / FOLDER).glob(f"model-{precision}*.onnx"))
        # Judged as plain ONNX files: TensorRT itself may not be here.
        entries = {path.stem.replace("model", "tensorrt", 1): _entry(artifact.folder, path, "onnx") for path in paths}
        files = {**artifact.manifest.files, **entries}
        candidate = Artifact(artifact.folder, artifact.manifest.model_copy(update={"files": files}))
        comparison = maker.compare(candidate, f"tensorrt-{precision}", task, config)
        reasons = list(objections(comparison, [], limits_of(task, config)))
        found[precision] = {**asdict(comparison), "refused": reasons}
        if reasons:
            for path in paths:
                path.unlink()
            faults.append(f"{precision}: {', '.join(reasons)}")
    if not faults:
        return found, None
    return found, GateRefused(f"not kept for TensorRT, on {config.images} images at most: {'; '.join(faults)}")


def _check(files: Mapping[str, Path]) -> tuple[dict[str, dict[str, Any]], EdgemimError | None]:
    """What tensorrt-rtx makes of each file, and the first fault."""
    checked: dict[str, dict[str, Any]] = {}
    fault: EdgemimError | None = None
    for name, path in files.items():
        try:
            checked[name] = {"built": True, **asdict(build_with_rtx(path, shapes_of(path)))}
        except (MissingLibrary, ModelRefused) as error:
            checked[name] = {"built": False, "refused": isinstance(error, ModelRefused), "reason": str(error)}
            fault = fault or error
    return checked, fault


def show_plan(plan: Mapping[str, Any], folder: Path) -> None:
    """Print what was written and what tensorrt-rtx said."""
    for name, state in plan["checked"].items():
        told = f"built by tensorrt-rtx {state['version']}" if state["built"] else state["reason"]
        print(f"{folder / FOLDER / f'model-{name}.onnx'}: {told}")
    judged = ", ".join(
        f"{precision} {np.round(found['agreement'], 2):g} % same answers"
        for precision, found in plan["fidelity"].items()
    )
    print(f"against FP32: {judged}; the trtexec lines are in {folder / FOLDER / 'trt_plan.json'}")
