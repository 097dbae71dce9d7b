"""TensorRT from a machine without one: files that its parser takes, a build by tensorrt-rtx, and the lines to run elsewhere.

TensorRT 11 knows strongly typed networks alone: the precision stands in the ONNX file. Jetson stays on 10.x, whose
builder may also lower a float32 file by itself; `trt_plan.json` holds the lines of both.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from edgemim.edge.artifact import sha256_of
from edgemim.edge.machine import INSTALL
from edgemim.edge.runtime.engines import EngineLibrary, Shapes
from edgemim.errors import MissingLibrary, ModelRefused
from edgemim.export.onnx import first_line, quietly
from edgemim.export.onnxruntime import inner_convolutions
from edgemim.run import write_text

PLAN_NAME = "trt_plan.json"
PLAN_VERSION = 1


@dataclass(frozen=True)
class Built:
    """What tensorrt-rtx made of a file: that it was accepted, not how fast it is."""

    version: str
    engine_bytes: int
    seconds: float


def quantize_symmetric(source: Path, target: Path, calibration: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Write an ONNX model with INT8 quantise-dequantise pairs in the one form that TensorRT's parser takes: signed,
    zero point 0, weights per channel, activations per tensor, biases in float.

    Linear layers and a head's convolutions: products without weights, sums, norms and the patch embedding stay in float.

    Args:
        source: the FP32 model.
        target: file to write.
        calibration: inputs by name to take the activations' largest magnitudes from.

    Raises:
        ModelRefused: if ONNX Runtime cannot handle the model.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(calibration)

        def get_next(self) -> Any:
            return next(self.rows, None)

    graph = onnx.load(source).graph
    weights, inner = {weight.name for weight in graph.initializer}, set(inner_convolutions(source))
    floats = [node.name for node in graph.node if node.op_type == "MatMul" and not weights.intersection(node.input)]
    floats += [node.name for node in graph.node if node.op_type == "Conv" and node.name not in inner]
    try:
        with quietly():
            quantize_static(
                source,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["MatMul", "Gemm", "Conv"],
                nodes_to_exclude=floats,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                extra_options={"ActivationSymmetric": True, "WeightSymmetric": True, "QuantizeBias": False},
            )
    except OSError:  # a full disk is no fault of the model
        raise
    except Exception as error:  # its errors share no base class
        raise ModelRefused(f"ONNX Runtime cannot quantise {source}: {first_line(error)}") from error


def build_with_rtx(path: Path, shapes: Mapping[str, Shapes]) -> Built:
    """Parse an ONNX file and build an engine by tensorrt-rtx, which needs no GPU for that. The engine is thrown away: it
    would run on RTX GPUs alone.

    Args:
        path: the ONNX file.
        shapes: of each input by name.

    Raises:
        MissingLibrary: if tensorrt-rtx is not installed.
        ModelRefused: if the parser or the builder refuses, with the nodes that it names.
    """
    try:
        library = EngineLibrary("tensorrt_rtx")
    except ImportError as error:
        raise MissingLibrary(f"the TensorRT check needs tensorrt-rtx: {INSTALL['tensorrt_rtx']}") from error
    began = time.perf_counter()
    engine = library.build(path, shapes)
    return Built(library.version, engine.nbytes, round(time.perf_counter() - began, 2))


def shapes_of(path: Path) -> dict[str, Shapes]:
    """Shapes of the inputs of an ONNX file, by name; a named or unknown side is a free batch."""
    inputs = onnx.load(path, load_external_data=False).graph.input
    sides = {given.name: [side.dim_value or None for side in given.type.tensor_type.shape.dim] for given in inputs}
    return {name: Shapes.of(shape) for name, shape in sides.items()}


def write_plan(
    folder: Path,
    files: Mapping[str, Path],
    *,
    checked: Mapping[str, Mapping[str, Any]],
    versions: Mapping[str, str],
    fidelity: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write trt_plan.json: files with hashes, shapes, and the `trtexec` lines that build each on TensorRT 11 and 10.x.

    Args:
        folder: the artifact's folder; `files` lie in it.
        files: by precision: fp32, fp16, int8; of a tracker in two graphs, the template's as fp32-template and so on.
        checked: by precision, what tensorrt-rtx made of it, or why it was not asked.
        versions: of the packages that wrote the files.
        fidelity: by precision, how its answers compare with FP32's.
    """
    shapes = {precision: shapes_of(path) for precision, path in files.items()}
    lines = {precision: _lines(path.name, shapes[precision]) for precision, path in files.items()}
    inputs = {name: shape for found in shapes.values() for name, shape in found.items()}
    plan = {
        "format_version": PLAN_VERSION,
        "files": {
            precision: {
                "path": path.name,
                "sha256": sha256_of(path),
                "bytes": path.stat().st_size,
                "inputs": sorted(shapes[precision]),
            }
            for precision, path in files.items()
        },
        "inputs": {
            name: {"min": list(shape.least), "opt": list(shape.typical), "max": list(shape.largest)}
            for name, shape in inputs.items()
        },
        "tensorrt_11": {precision: found["tensorrt_11"] for precision, found in lines.items()},
        "tensorrt_10": {precision: found["tensorrt_10"] for precision, found in lines.items()},
        "checked_by_tensorrt_rtx": {name: dict(value) for name, value in checked.items()},
        "fidelity": {name: dict(value) for name, value in (fidelity or {}).items()},
        "versions": dict(versions),
    }
    write_text(folder / PLAN_NAME, json.dumps(plan, indent=2) + "\n")
    return folder / PLAN_NAME


def _lines(name: str, shapes: Mapping[str, Shapes]) -> dict[str, str]:
    """The command of each generation. 11 is always strongly typed and has no precision flags; 10 has to be told."""
    stem = Path(name).stem
    line = f"trtexec --onnx={name} --saveEngine={stem}.plan"
    if any(shape.least != shape.largest for shape in shapes.values()):
        for flag, kind in (("minShapes", "least"), ("optShapes", "typical"), ("maxShapes", "largest")):
            given = ",".join(f"{key}:{'x'.join(map(str, getattr(shape, kind)))}" for key, shape in shapes.items())
            line += f" --{flag}={given}"
    return {"tensorrt_11": line, "tensorrt_10": f"{line} --stronglyTyped"}
