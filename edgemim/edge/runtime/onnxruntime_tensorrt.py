"""ONNX files on ONNX Runtime's TensorRT provider, which has to take every product of the graph."""

from __future__ import annotations

from edgemim.edge.artifact import Artifact
from edgemim.edge.runtime.engine_cache import cache_folder
from edgemim.edge.runtime.external_data import check_external_data
from edgemim.edge.runtime.onnxruntime import OnnxRuntimeSession, load_gpu_libraries

PROVIDER = "TensorrtExecutionProvider"


def open_file(artifact: Artifact, key: str, threads: int) -> OnnxRuntimeSession:
    """Open an ONNX file of an artifact. Raises UserError on files that the manifest does not list, MissingLibrary,
    ModelRefused."""
    entry = artifact.entry(key)
    check_external_data(artifact, entry)
    load_gpu_libraries()
    # Building takes seconds to minutes; the provider keys its cache by graph, device and version itself.
    folder = cache_folder() / "onnxruntime"
    options = {"trt_engine_cache_enable": "True", "trt_engine_cache_path": str(folder)}
    return OnnxRuntimeSession(
        artifact.file(key),
        entry.precision,
        threads,
        provider=PROVIDER,
        options=options,
        runtime="onnxruntime-tensorrt",
    )
