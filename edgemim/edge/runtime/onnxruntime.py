"""ONNX files on ONNX Runtime's CPU provider."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from edgemim.edge.artifact import Artifact
from edgemim.edge.runtime.external_data import check_external_data
from edgemim.edge.runtime.session import check_inputs
from edgemim.errors import ModelRefused


class OnnxRuntimeSession:
    """A model in ONNX Runtime with a thread pool of its own."""

    runtime = "onnxruntime"

    def __init__(self, path: Path, precision: str, threads: int) -> None:
        self.precision = precision
        self.threads = threads
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # its errors share no base class
            raise ModelRefused(f"ONNX Runtime {onnxruntime.__version__} refuses {path}: {_line(error)}") from error
        self._outputs = [output.name for output in self._session.get_outputs()]
        self._inputs = {
            node.name: tuple(size if isinstance(size, int) else None for size in node.shape)
            for node in self._session.get_inputs()
        }

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch. Raises UserError on inputs that do not fit."""
        check_inputs(inputs, self._inputs)
        results = self._session.run(self._outputs, inputs)
        return {name: np.asarray(result) for name, result in zip(self._outputs, results, strict=True)}


def open_file(artifact: Artifact, key: str, threads: int) -> OnnxRuntimeSession:
    """Open an ONNX file of an artifact. Raises UserError if it reads files that the manifest does not list."""
    entry = artifact.entry(key)
    check_external_data(artifact, entry)
    return OnnxRuntimeSession(artifact.file(key), entry.precision, threads)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
