"""ONNX files on ONNX Runtime's CUDA provider, which has to take every product of the graph."""

from __future__ import annotations

from edgemim.edge.artifact import Artifact
from edgemim.edge.runtime.external_data import check_external_data
from edgemim.edge.runtime.onnxruntime import OnnxRuntimeSession, load_gpu_libraries

PROVIDER = "CUDAExecutionProvider"


def open_file(artifact: Artifact, key: str, threads: int) -> OnnxRuntimeSession:
    """Open an ONNX file of an artifact. Raises UserError on files that the manifest does not list, MissingLibrary,
    ModelRefused."""
    entry = artifact.entry(key)
    check_external_data(artifact, entry)
    load_gpu_libraries()
    return OnnxRuntimeSession(
        artifact.file(key),
        entry.precision,
        threads,
        provider=PROVIDER,
        runtime="onnxruntime-cuda",
    )
