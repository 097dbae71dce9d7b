"""ONNX files on ONNX Runtime's CUDA provider, which has to take every product of the graph."""

from __future__ import annotations

from edgemim.edge.artifact import Artifact
from edgemim.edge.runtime.onnxruntime import OnnxRuntimeSession, open_on_gpu

PROVIDER = "CUDAExecutionProvider"


def open_file(artifact: Artifact, key: str, threads: int) -> OnnxRuntimeSession:
    """Open an ONNX file of an artifact. Raises as `open_on_gpu` does."""
    return open_on_gpu(artifact, key, threads, runtime="onnxruntime-cuda", provider=PROVIDER)
