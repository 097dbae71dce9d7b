"""OpenVINO's own files and ONNX files on OpenVINO's CPU plugin."""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import openvino

from edgemim.edge.artifact import Artifact
from edgemim.edge.machine import BF16_FLAGS, cpu_flags
from edgemim.edge.runtime.external_data import check_external_data
from edgemim.edge.runtime.session import check_inputs
from edgemim.errors import ModelRefused, UserError


@cache
def core() -> openvino.Core:
    """The one OpenVINO core of this process, never destroyed.

    A core's CPU plugin puts its own signal stack in place of the thread's and, destroyed, puts the former one back: of
    two cores not destroyed in reverse order the later one leaves a freed stack, and the next signal (a Ctrl-C) ends
    the process with a segmentation fault.
    """
    return openvino.Core()


class OpenVinoSession:
    """A model compiled for the CPU: one stream, tuned for latency, float parts in float32 unless bfloat16 is asked for.

    bfloat16 needs a CPU that has its instructions; on another the session warns and computes in float32.
    """

    runtime = "openvino"

    def __init__(self, path: Path, precision: str, threads: int, execution: Literal["f32", "bf16"] = "f32") -> None:
        self.precision = precision
        self.threads = threads
        self.execution = execution_here(execution, path)
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            # On CPUs with bfloat16 instructions OpenVINO's default would round every model, judged so or not.
            "INFERENCE_PRECISION_HINT": self.execution,
        }
        try:
            model = core().read_model(path)
            self._request = core().compile_model(model, "CPU", settings).create_infer_request()
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:400]
            raise ModelRefused(f"OpenVINO {openvino.__version__} refuses {path}: {reason}") from error
        # The file's own names: compiled, an input may go by that of a cast that was folded into it.
        self._outputs = [output.get_any_name() for output in model.outputs]
        self._inputs = {node.get_any_name(): _shape(node) for node in model.inputs}

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch. Raises UserError on inputs that do not fit."""
        check_inputs(inputs, self._inputs)
        results = self._request.infer([inputs[name] for name in self._inputs])
        # The request reuses its output memory in the next run.
        return {name: np.array(results[index]) for index, name in enumerate(self._outputs)}


def open_file(artifact: Artifact, key: str, threads: int) -> OpenVinoSession:
    """Open an ONNX or OpenVINO file of an artifact. Raises UserError on files that the manifest does not list."""
    entry = artifact.entry(key)
    return OpenVinoSession(checked_file(artifact, key), entry.precision, threads, entry.execution)


def execution_here(asked: Literal["f32", "bf16"], path: Path) -> Literal["f32", "bf16"]:
    """What this CPU computes float parts in: as asked, or float32 with a warning."""
    if asked == "bf16" and not computes_bf16():
        warnings.warn(
            f"{path.name} was judged with its float parts in bfloat16, which this CPU lacks: they are computed in float32, "
            "as exact but slower",
            stacklevel=2,
        )
        return "f32"
    return asked


def computes_bf16() -> bool:
    """Whether the CPU has instructions for products of bfloat16; without them it would emulate, several times slower."""
    return bool(BF16_FLAGS & set(cpu_flags()))


def checked_file(artifact: Artifact, key: str) -> Path:
    """The path of a file that OpenVINO may read. Raises UserError if it needs others that the manifest does not list."""
    entry = artifact.entry(key)
    path = artifact.file(key)
    if entry.format == "onnx":
        check_external_data(artifact, entry)
    elif str(Path(entry.path).with_suffix(".bin")) not in entry.companions:
        raise UserError(f"{path}: the manifest lists no weights {path.with_suffix('.bin').name}; export it again")
    return path


def _shape(node: openvino.Output) -> tuple[int | None, ...]:
    return tuple(size.get_length() if size.is_static else None for size in node.partial_shape)
