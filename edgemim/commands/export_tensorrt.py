"""`edgemim export --tensorrt`: float16 and INT8 files for TensorRT, judged against FP32, and the lines that build them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from edgemim.edge.artifact import Artifact
from edgemim.edge.runtime import Session
from edgemim.edge.runtime.onnxruntime import OnnxRuntimeSession
from edgemim.errors import EdgemimError, GateRefused, MissingLibrary, ModelRefused
from edgemim.export.fidelity import Portions
from edgemim.export.onnx import export_onnx
from edgemim.export.parity import chunks
from edgemim.export.quantize import calibration_images, objections
from edgemim.export.smoothquant import smooth
from edgemim.export.tensorrt import HalfInside, Shapes, build_with_rtx, quantize_symmetric, write_plan
from edgemim.run import installed_versions
from edgemim.tasks import Task

FOLDER = "tensorrt"
_NAMES = {"fp32": "model-fp32.onnx", "fp16": "model-fp16.onnx", "int8": "model-int8-qdq.onnx"}


def write_tensorrt(
    artifact: Artifact, task: Task, calibration: int, images: int
) -> tuple[dict[str, Any], EdgemimError | None]:
    """Write ARTIFACT/tensorrt: the files that TensorRT's parser takes and trt_plan.json.

    INT8 is made of the smoothed model, whose function is the same. A file whose answers differ too much from FP32's (on
    ONNX Runtime) is not kept.

    Returns:
        The plan's figures, and what was missing or refused: raised by the caller once the artifact is complete.
    """
    folder = artifact.folder / FOLDER
    folder.mkdir()
    manifest = artifact.manifest
    module, batch = task.export_module().cpu(), manifest.input_shape[0] or 1
    (folder / _NAMES["fp32"]).write_bytes(artifact.file("onnx-fp32").read_bytes())
    rows, digest = calibration_images(task, calibration)
    _export(HalfInside(module), folder / _NAMES["fp16"], artifact, task)
    smoothed = folder / "smoothed.onnx"
    _export(smooth(module, list(chunks(rows, 16))), smoothed, artifact, task)
    inputs = [{manifest.input_name: piece} for piece in chunks(rows, batch)]
    quantize_symmetric(smoothed, folder / _NAMES["int8"], inputs)
    smoothed.unlink()
    fidelity, refused = _judge(folder, task, batch, images)
    shapes = {manifest.input_name: Shapes.of(manifest.input_shape)}
    files = {precision: folder / name for precision, name in _NAMES.items() if (folder / name).is_file()}
    checked, fault = _check(files, shapes)
    plan = {"calibration_sha256": digest, "calibration_images": len(rows), "fidelity": fidelity, "checked": checked}
    write_plan(folder, files, shapes, checked=checked, fidelity=fidelity, versions=installed_versions())
    return plan, refused or fault


def _export(module: nn.Module, path: Path, artifact: Artifact, task: Task) -> None:
    manifest = artifact.manifest
    batch = manifest.input_shape[0]
    example = task.example_input(batch or 2)
    export_onnx(
        module,
        example,
        path,
        input_name=manifest.input_name,
        output_names=manifest.output_names,
        opset=manifest.opset,
        dynamic_batch=batch is None,
    )


def _judge(folder: Path, task: Task, batch: int, images: int) -> tuple[dict[str, Any], GateRefused | None]:
    """Compare float16 and INT8 with FP32; a file that is too far off is removed, with the reasons."""
    original = _open(folder / _NAMES["fp32"], batch)
    found, faults = {}, []
    for precision in ("fp16", "int8"):
        path = folder / _NAMES[precision]
        comparison = task.compare(original, _open(path, batch), images)
        reasons = list(objections(comparison, [], task.limits))
        found[precision] = {**asdict(comparison), "refused": reasons}
        if reasons:
            path.unlink()
            faults.append(f"{precision}: {', '.join(reasons)}")
    return found, GateRefused(
        f"not kept for TensorRT, on {images} images at most: {'; '.join(faults)}"
    ) if faults else None


def _open(path: Path, batch: int) -> Session:
    return Portions(OnnxRuntimeSession(path, "", 0), batch)


def _check(
    files: Mapping[str, Path], shapes: Mapping[str, Shapes]
) -> tuple[dict[str, dict[str, Any]], EdgemimError | None]:
    """What tensorrt-rtx makes of each file, and the first fault."""
    checked: dict[str, dict[str, Any]] = {}
    fault: EdgemimError | None = None
    for precision, path in files.items():
        try:
            checked[precision] = {"built": True, **asdict(build_with_rtx(path, shapes))}
        except (MissingLibrary, ModelRefused) as error:
            checked[precision] = {"built": False, "reason": str(error)}
            fault = fault or error
    return checked, fault


def show_plan(plan: Mapping[str, Any], folder: Path) -> None:
    """Print what was written and what tensorrt-rtx said."""
    for precision, state in plan["checked"].items():
        told = f"built by tensorrt-rtx {state['version']}" if state["built"] else state["reason"]
        print(f"{folder / FOLDER / _NAMES[precision]}: {told}")
    judged = ", ".join(
        f"{precision} {np.round(found['agreement'], 2):g} % same answers"
        for precision, found in plan["fidelity"].items()
    )
    print(f"against FP32: {judged}; the trtexec lines are in {folder / FOLDER / 'trt_plan.json'}")
