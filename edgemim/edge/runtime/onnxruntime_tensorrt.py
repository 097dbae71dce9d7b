"""ONNX files on ONNX Runtime's TensorRT provider, which has to take every product of the graph."""

from __future__ import annotations

from edgemim.edge.artifact import Artifact
from edgemim.edge.runtime.engine_cache import cache_folder
from edgemim.edge.runtime.onnxruntime import OnnxRuntimeSession, open_on_gpu

PROVIDER = "TensorrtExecutionProvider"


def open_file(artifact: Artifact, key: str, threads: int) -> OnnxRuntimeSession:
    """Open an ONNX file of an artifact. Raises as `open_on_gpu` does."""
    # Building takes seconds to minutes; the provider keys its cache by graph, device and version itself.
    folder = cache_folder() / "onnxruntime"
    options = {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(folder)}
    return open_on_gpu(artifact, key, threads, runtime="onnxruntime-tensorrt", provider=PROVIDER, options=options)
