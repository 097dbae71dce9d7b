"""TensorRT from a machine without one: files that its parser takes, a build by tensorrt-rtx, and the lines to run elsewhere.

TensorRT 11 knows strongly typed networks alone: the precision stands in the ONNX file. Jetson stays on 10.x, whose
builder may also lower a float32 file by itself; `trt_plan.json` holds the lines of both.
"""

from __future__ import annotations

import copy
import importlib
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from edgemim.edge.artifact import sha256_of
from edgemim.edge.machine import INSTALL
from edgemim.errors import MissingLibrary, ModelRefused
from edgemim.export.onnx import first_line, quietly
from edgemim.run import write_text

PLAN_NAME = "trt_plan.json"
PLAN_VERSION = 1


@dataclass(frozen=True)
class Shapes:
    """Smallest, typical and largest shape of one input, for an optimisation profile."""

    least: tuple[int, ...]
    typical: tuple[int, ...]
    largest: tuple[int, ...]

    @staticmethod
    def of(shape: Sequence[int | None], *, typical_batch: int = 1, largest_batch: int = 16) -> Shapes:
        """Shapes of a manifest's input: a free batch (None) from 1 to `largest_batch`, else the fixed one."""
        batch, *rest = shape
        sizes = tuple(int(side or 0) for side in rest)
        least, typical, largest = (1, typical_batch, largest_batch) if batch is None else (batch,) * 3
        return Shapes((least, *sizes), (typical, *sizes), (largest, *sizes))


@dataclass(frozen=True)
class Built:
    """What tensorrt-rtx made of a file: that it was accepted, not how fast it is."""

    version: str
    engine_bytes: int
    seconds: float


class HalfInside(nn.Module):
    """A model computed in float16 between an input and outputs in float32, as strong typing wants it written down."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = copy.deepcopy(module).half().eval()

    def forward(self, images: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Outputs in float32 of an input in float32."""
        outputs = self.module(images.half())
        return outputs.float() if isinstance(outputs, Tensor) else tuple(output.float() for output in outputs)


def quantize_symmetric(source: Path, target: Path, calibration: Sequence[Mapping[str, np.ndarray]]) -> None:
    """Write an ONNX model with INT8 quantise-dequantise pairs in the one form that TensorRT's parser takes: signed,
    zero point 0, weights per channel, activations per tensor, biases in float.

    Linear layers only: products without weights, sums, norms and the patch embedding stay in float.

    Args:
        source: the FP32 model.
        target: file to write.
        calibration: inputs by name to take the activations' largest magnitudes from.

    Raises:
        ModelRefused: if ONNX Runtime cannot handle the model.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter(calibration)

        def get_next(self) -> Any:
            return next(self.rows, None)

    graph = onnx.load(source).graph
    weights = {weight.name for weight in graph.initializer}
    products = [node.name for node in graph.node if node.op_type == "MatMul" and not weights.intersection(node.input)]
    try:
        with quietly():
            quantize_static(
                source,
                target,
                Reader(),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=["MatMul", "Gemm"],
                nodes_to_exclude=products,
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
        trt: Any = importlib.import_module("tensorrt_rtx")
    except ImportError as error:
        raise MissingLibrary(f"the TensorRT check needs tensorrt-rtx: {INSTALL['tensorrt_rtx']}") from error

    began = time.perf_counter()
    logger = _Log(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        faults = [parser.get_error(index) for index in range(parser.num_errors)]
        raise ModelRefused(f"TensorRT's parser refuses {path}: {_nodes(faults) or logger.text()}")
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for name, shape in shapes.items():
        profile.set_shape(name, shape.least, shape.typical, shape.largest)
    config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:  # it raises nothing, it writes to its log
        raise ModelRefused(f"TensorRT's builder refuses {path}: {logger.text()}")
    return Built(trt.__version__, engine.nbytes, round(time.perf_counter() - began, 2))


def _Log(trt: Any) -> Any:  # a class of a module that may be absent
    class Log(trt.ILogger):
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

        def text(self) -> str:
            return "; ".join(" ".join(error.split()) for error in self.errors[:3])[:500] or "no reason given"

    return Log()


def _nodes(faults: Sequence[Any]) -> str:
    told = [
        f"node {fault.node_name() or fault.node()} ({fault.node_operator()}): {fault.desc()}" for fault in faults[:5]
    ]
    return "; ".join(" ".join(line.split()) for line in told)[:800]


def write_plan(
    folder: Path,
    files: Mapping[str, Path],
    shapes: Mapping[str, Shapes],
    *,
    checked: Mapping[str, Mapping[str, Any]],
    versions: Mapping[str, str],
    fidelity: Mapping[str, Mapping[str, Any]] | None = None,
) -> Path:
    """Write trt_plan.json: files with hashes, shapes, and the `trtexec` lines that build each on TensorRT 11 and 10.x.

    Args:
        folder: the artifact's folder; `files` lie in it.
        files: by precision: fp32, fp16, int8.
        shapes: of each input by name.
        checked: by precision, what tensorrt-rtx made of it, or why it was not asked.
        versions: of the packages that wrote the files.
        fidelity: by precision, how its answers compare with FP32's.
    """
    lines = {precision: _lines(precision, path.name, shapes) for precision, path in files.items()}
    plan = {
        "format_version": PLAN_VERSION,
        "files": {
            precision: {"path": path.name, "sha256": sha256_of(path), "bytes": path.stat().st_size}
            for precision, path in files.items()
        },
        "inputs": {
            name: {"min": list(shape.least), "opt": list(shape.typical), "max": list(shape.largest)}
            for name, shape in shapes.items()
        },
        "tensorrt_11": {precision: found["tensorrt_11"] for precision, found in lines.items()},
        "tensorrt_10": {precision: found["tensorrt_10"] for precision, found in lines.items()},
        "checked_by_tensorrt_rtx": {name: dict(value) for name, value in checked.items()},
        "fidelity": {name: dict(value) for name, value in (fidelity or {}).items()},
        "versions": dict(versions),
    }
    write_text(folder / PLAN_NAME, json.dumps(plan, indent=2) + "\n")
    return folder / PLAN_NAME


def _lines(precision: str, name: str, shapes: Mapping[str, Shapes]) -> dict[str, str]:
    """The command of each generation. 11 is always strongly typed and has no precision flags; 10 has to be told."""
    stem = Path(name).stem
    line = f"trtexec --onnx={name} --saveEngine={stem}.plan"
    if any(shape.least != shape.largest for shape in shapes.values()):
        for flag, kind in (("minShapes", "least"), ("optShapes", "typical"), ("maxShapes", "largest")):
            given = ",".join(f"{key}:{'x'.join(map(str, getattr(shape, kind)))}" for key, shape in shapes.items())
            line += f" --{flag}={given}"
    return {"tensorrt_11": line, "tensorrt_10": f"{line} --stronglyTyped"}
