"""OpenVINO's own files and ONNX files on OpenVINO's CPU plugin."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import openvino

from edgemim.edge.artifact import Artifact
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
    """A model compiled for the CPU: one stream, tuned for latency, float parts in float32."""

    runtime = "openvino"

    def __init__(self, path: Path, precision: str, threads: int) -> None:
        self.precision = precision
        self.threads = threads
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": "1",
            "INFERENCE_NUM_THREADS": str(threads),
            # On CPUs with bfloat16 instructions the default would round an FP32 model; parity was measured without.
            "INFERENCE_PRECISION_HINT": "f32",
        }
        try:
            self._compiled = core().compile_model(core().read_model(path), "CPU", settings)
            self._request = self._compiled.create_infer_request()
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:400]
            raise ModelRefused(f"OpenVINO {openvino.__version__} refuses {path}: {reason}") from error
        self._outputs = [output.get_any_name() for output in self._compiled.outputs]
        self._inputs = {node.get_any_name(): _shape(node) for node in self._compiled.inputs}

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch. Raises UserError on inputs that do not fit."""
        check_inputs(inputs, self._inputs)
        results = self._request.infer(inputs)
        # The request reuses its output memory in the next run.
        return {name: np.array(results[index]) for index, name in enumerate(self._outputs)}


def open_file(artifact: Artifact, key: str, threads: int) -> OpenVinoSession:
    """Open an ONNX or OpenVINO file of an artifact. Raises UserError on files that the manifest does not list."""
    return OpenVinoSession(checked_file(artifact, key), artifact.entry(key).precision, threads)


def checked_file(artifact: Artifact, key: str) -> Path:
    """The path of a file that OpenVINO may read. Raises UserError if it needs others that the manifest does not list."""
    entry = artifact.entry(key)
    path = artifact.file(key)
    if entry.format == "onnx":
        check_external_data(artifact, entry)
    elif str(Path(entry.path).with_suffix(".bin")) not in entry.companions:
        raise UserError(f"{path}: the manifest lists no weights {path.with_suffix('.bin').name}; export it again")
    return path


def _shape(node: openvino.ConstOutput) -> tuple[int | None, ...]:
    return tuple(size.get_length() if size.is_static else None for size in node.partial_shape)
