"""Which runtimes can run here, and if one cannot: what is missing and how to get it. No runtime is imported for that."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from edgemim.edge.cuda import gpu_fault
from edgemim.edge.machine import INSTALL
from edgemim.errors import EdgemimError, MissingLibrary, NoGpu

ON_GPU = ("onnxruntime-cuda", "onnxruntime-tensorrt", "tensorrt")
"""Runtimes that need an NVIDIA GPU."""
_PACKAGES = {"tensorrt": ("tensorrt", "tensorrt_rtx")}
_PROVIDERS = {
    "onnxruntime-cuda": "onnxruntime_providers_cuda",
    "onnxruntime-tensorrt": "onnxruntime_providers_tensorrt",
}


def missing(runtime: str) -> str | None:
    """Why a runtime cannot run here and how to get it, in one sentence; None if nothing is known to be missing."""
    fault = fault_of(runtime)
    return None if fault is None else str(fault)


def fault_of(runtime: str) -> EdgemimError | None:
    """The error that opening a model with this runtime would end in: MissingLibrary, NoGpu, or none."""
    gpu = gpu_fault() if runtime in ON_GPU else None
    also = f"; it needs an NVIDIA GPU too, and {gpu}" if gpu else ""
    packages = _PACKAGES.get(runtime, (runtime.partition("-")[0],))
    found = [package for package in packages if _folder(package) is not None]
    if not found:
        return MissingLibrary(f"runtime {runtime} is not installed: {INSTALL[packages[0]]}{also}")
    if runtime in _PROVIDERS and not _has_provider(_PROVIDERS[runtime]):
        return MissingLibrary(
            f"runtime {runtime} needs a build of ONNX Runtime with that provider: {INSTALL['onnxruntime-gpu']}{also}"
        )
    if gpu:
        return NoGpu(f"runtime {runtime} needs an NVIDIA GPU, and {gpu}; run it on a machine that has one")
    return None


def _folder(package: str) -> Path | None:
    """Where an installed package lies. A name that was made unimportable counts as absent."""
    try:
        found = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    return Path(found.origin).parent if found is not None and found.origin else None


def _has_provider(name: str) -> bool:
    folder = _folder("onnxruntime")
    return folder is not None and any((folder / "capi").glob(f"*{name}*"))
