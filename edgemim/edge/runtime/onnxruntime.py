"""ONNX files on ONNX Runtime: its CPU provider, or one for GPUs that has to take the products of the graph itself.

ONNX Runtime lets its CPU provider step in for another that cannot be loaded or does not know a node, with a line in its
log at most; so it is asked afterwards who got which node.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnxruntime

from edgemim.edge.artifact import Artifact
from edgemim.edge.runtime.external_data import check_external_data
from edgemim.edge.runtime.session import check_inputs
from edgemim.errors import MissingLibrary, ModelRefused

CPU = "CPUExecutionProvider"
# What the time goes to; shapes and indices may be computed on the CPU.
_PRODUCTS = re.compile("MatMul|Gemm|Conv|Attention")
_RECORD_ASSIGNMENT = "session.record_ep_graph_assignment_info"


class OnnxRuntimeSession:
    """A model in ONNX Runtime with a thread pool of its own.

    Args:
        path: an ONNX file.
        precision: of its weights.
        threads: CPU threads.
        provider: execution provider that has to compute the products, and its `options`.
        runtime: name to answer to.

    Raises:
        ModelRefused: if the file cannot be opened, or the provider leaves products to the CPU.
        MissingLibrary: if the provider cannot be loaded.
    """

    def __init__(
        self,
        path: Path,
        precision: str,
        threads: int,
        *,
        provider: str = CPU,
        options: Mapping[str, str] | None = None,
        runtime: str = "onnxruntime",
    ) -> None:
        self.runtime, self.precision, self.threads = runtime, precision, threads
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = threads
        settings.inter_op_num_threads = 1
        settings.log_severity_level = 3
        if provider != CPU:
            settings.add_session_config_entry(_RECORD_ASSIGNMENT, "1")
        try:
            chosen = [(provider, dict(options))] if options else [provider]
            self._session = onnxruntime.InferenceSession(str(path), settings, providers=chosen)
        except Exception as error:  # its errors share no base class
            raise ModelRefused(f"ONNX Runtime {onnxruntime.__version__} refuses {path}: {_line(error)}") from error
        if provider != CPU:
            _check_provider(self._session, provider, path)
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


def open_on_gpu(
    artifact: Artifact, key: str, threads: int, *, runtime: str, provider: str, options: Mapping[str, str] | None = None
) -> OnnxRuntimeSession:
    """Open an ONNX file of an artifact on a provider that has to take every product of the graph.

    Raises UserError on files that the manifest does not list, MissingLibrary, ModelRefused.
    """
    entry = artifact.entry(key)
    check_external_data(artifact, entry)
    _load_gpu_libraries()
    return OnnxRuntimeSession(
        artifact.file(key), entry.precision, threads, provider=provider, options=options, runtime=runtime
    )


def _load_gpu_libraries() -> None:
    """Find CUDA and cuDNN where pip put them; what is not found shows when the provider is asked for."""
    if hasattr(onnxruntime, "preload_dlls"):
        onnxruntime.preload_dlls(directory="")


def _check_provider(session: onnxruntime.InferenceSession, provider: str, path: Path) -> None:
    """Raise unless the provider was loaded and computes every product of the graph."""
    if session.get_providers()[0] != provider:
        raise MissingLibrary(
            f"ONNX Runtime {onnxruntime.__version__} cannot load its {provider} and would compute on the CPU; install the "
            "CUDA, cuDNN and (for its TensorRT provider) TensorRT versions that this onnxruntime-gpu was built with"
        )
    if not hasattr(session, "get_provider_graph_assignment_info"):
        raise MissingLibrary(
            f"ONNX Runtime {onnxruntime.__version__} does not tell which provider computes what, so a fall back to the CPU "
            "would go unseen; install onnxruntime-gpu 1.24 or newer"
        )
    took, left = 0, []
    for part in session.get_provider_graph_assignment_info():
        products = [node for node in part.get_nodes() if _PRODUCTS.search(node.op_type)]
        if part.ep_name == provider:
            took += len(products)
        else:
            left += [f"{node.name or node.op_type} ({part.ep_name})" for node in products]
    if left or not took:
        raise ModelRefused(
            f"{provider} takes {took} of {took + len(left)} products of {path}; left over: {', '.join(left[:3]) or 'none'}; "
            "use a file in float, or another runtime"
        )


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:400]
