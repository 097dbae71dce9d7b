"""OpenVINO as a server uses it: several requests in flight on several streams, images a second before latency."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import openvino

from edgemim.edge.artifact import Artifact
from edgemim.edge.runtime.openvino import checked_file, core, execution_here
from edgemim.edge.runtime.session import check_inputs
from edgemim.errors import ModelRefused

_WAVES = 4
"""Runs of each request in one wave: the last ones of a wave wait for each other, and should be few among many."""


class ThroughputSession:
    """A model compiled for the CPU with the throughput hint; `requests` runs are in flight at once, on `streams` streams."""

    runtime = "openvino-throughput"

    def __init__(self, path: Path, precision: str, threads: int, execution: Literal["f32", "bf16"] = "f32") -> None:
        self.precision = precision
        self.threads = threads
        settings = {
            "PERFORMANCE_HINT": "THROUGHPUT",
            "INFERENCE_NUM_THREADS": str(threads),
            "INFERENCE_PRECISION_HINT": execution_here(execution, path),
        }
        try:
            model = core().read_model(path)
            compiled = core().compile_model(model, "CPU", settings)
            self._queue = openvino.AsyncInferQueue(compiled)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:400]
            raise ModelRefused(f"OpenVINO {openvino.__version__} refuses {path}: {reason}") from error
        self.requests = len(self._queue)
        self.streams = int(compiled.get_property("NUM_STREAMS"))
        self._outputs = [output.get_any_name() for output in model.outputs]
        self._inputs = {
            node.get_any_name(): tuple(size.get_length() if size.is_static else None for size in node.partial_shape)
            for node in model.inputs
        }

    @property
    def runs_per_wave(self) -> int:
        """Runs that one `wave` makes."""
        return _WAVES * self.requests

    def wave(self, inputs: dict[str, np.ndarray]) -> None:
        """Run the same batch `runs_per_wave` times, as many at once as there are requests, and wait for all."""
        for _ in range(self.runs_per_wave):
            self._queue.start_async([inputs[name] for name in self._inputs])
        self._queue.wait_all()

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch. Raises UserError on inputs that do not fit."""
        check_inputs(inputs, self._inputs)
        results = self._queue[0].infer([inputs[name] for name in self._inputs])
        return {name: np.array(results[index]) for index, name in enumerate(self._outputs)}


def open_file(artifact: Artifact, key: str, threads: int) -> ThroughputSession:
    """Open an ONNX or OpenVINO file of an artifact. Raises UserError on files that the manifest does not list."""
    entry = artifact.entry(key)
    return ThroughputSession(checked_file(artifact, key), entry.precision, threads, entry.execution)
