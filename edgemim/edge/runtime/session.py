"""The one interface to a model that runs, and the choice of the runtime that opens it."""

from __future__ import annotations

import importlib
from typing import Protocol

import numpy as np

from edgemim.config import suggest
from edgemim.edge.artifact import Artifact
from edgemim.edge.machine import INSTALL, usable_cpus
from edgemim.errors import MissingLibrary, UserError

# Which runtimes read which format, the default first; a runtime's module is named like its package.
READERS: dict[str, tuple[str, ...]] = {"onnx": ("onnxruntime", "openvino"), "openvino": ("openvino",)}


class Session(Protocol):
    """A model ready to run. `threads` is the number of CPU threads that it computes with."""

    runtime: str
    precision: str
    threads: int

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name for inputs by name, e.g. {"images": float32 [b, 3, h, w]} -> {"logits": float32 [b, n]}."""
        ...


def open_session(
    artifact: Artifact, key: str = "onnx-fp32", *, runtime: str | None = None, threads: int = 0
) -> Session:
    """Open one model file of an artifact; `threads=0` means all usable CPUs.

    Raises UserError on a key or runtime that does not fit, MissingLibrary if the runtime is not installed, ModelRefused
    if it cannot read the model.
    """
    entry = artifact.entry(key)
    readers = READERS[entry.format]
    runtime = runtime or readers[0]
    if runtime not in readers:
        raise UserError(
            f"runtime '{runtime}' does not read {entry.format} files{suggest(runtime, readers)}; "
            f"for '{key}' use {' or '.join(readers)}"
        )
    if threads < 0:
        raise UserError(f"threads is {threads}; give 0 for all usable CPUs, or a positive number")
    try:
        module = importlib.import_module(f"edgemim.edge.runtime.{runtime}")
    except ImportError as error:
        state = "is not installed" if isinstance(error, ModuleNotFoundError) else f"cannot be loaded ({error})"
        raise MissingLibrary(f"runtime {runtime} {state}: {INSTALL[runtime]}") from error
    return module.open_file(artifact, key, threads or usable_cpus())


def check_inputs(inputs: dict[str, np.ndarray], known: dict[str, tuple[int | None, ...]]) -> None:
    """Compare input arrays with the model's inputs (None = any size). Raises UserError that names the input."""
    if inputs.keys() != known.keys():
        raise UserError(f"the model takes inputs {', '.join(known)}, not {', '.join(inputs) or 'none'}")
    for name, shape in known.items():
        given = inputs[name]
        fits = given.ndim == len(shape) and all(
            want is None or want == size for want, size in zip(shape, given.shape, strict=True)
        )
        if not fits or given.dtype != np.float32:
            want = "×".join("any" if size is None else str(size) for size in shape)
            raise UserError(f"input '{name}' is {given.dtype} {given.shape}; the model takes float32 {want}")
