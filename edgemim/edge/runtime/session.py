"""The one interface to a model that runs, and the choice of the runtime that opens it."""

from __future__ import annotations

import importlib
import warnings
from typing import Protocol

import numpy as np

from edgemim.config import suggest
from edgemim.edge.artifact import Artifact, ModelFile
from edgemim.edge.machine import INSTALL, INT8_FLAGS, cpu_flags, usable_cpus
from edgemim.edge.runtime.available import ON_GPU, fault_of
from edgemim.errors import MissingLibrary, UserError

# Which runtimes read which format, the default first; a runtime's module is named like it, with _ for -.
READERS: dict[str, tuple[str, ...]] = {
    "onnx": ("onnxruntime", "openvino", *ON_GPU),
    "openvino": ("openvino",),
    # ONNX as TensorRT's parser wants it: the types are the file's own.
    "tensorrt": ("tensorrt", "onnxruntime-tensorrt"),
}


class Session(Protocol):
    """A model ready to run. `threads` is the number of CPU threads that it computes with (what the CPU has to do, where
    the runtime computes on a GPU)."""

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

    Warns if the file is made for CPU instructions that are not there.

    Raises UserError on a key or runtime that does not fit, MissingLibrary if the runtime is not installed, NoGpu if it
    needs one, ModelRefused if it cannot read the model.
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
    if (fault := fault_of(runtime)) is not None:
        raise fault
    try:
        module = importlib.import_module(f"edgemim.edge.runtime.{runtime.replace('-', '_')}")
    except ImportError as error:
        package = runtime.partition("-")[0]
        raise MissingLibrary(f"runtime {runtime} cannot be loaded ({error}): {INSTALL[package]}") from error
    if runtime not in ON_GPU:
        _warn_of_instructions(artifact, key, entry)
    return module.open_file(artifact, key, threads or usable_cpus())


def _warn_of_instructions(artifact: Artifact, key: str, entry: ModelFile) -> None:
    """Full 8-bit weights on a CPU that adds their products in 16 bits: a warning, once for each file."""
    flags = cpu_flags()
    if entry.isa == "vnni" and flags and not INT8_FLAGS & set(flags):
        warnings.warn(
            f"'{key}' of {artifact.folder} has full 8-bit weights for CPUs with 8-bit dot products (VNNI), which this one "
            "lacks: sums may overflow and answers be wrong; make it again here with `edgemim quantize --isa portable "
            "--overwrite`",
            stacklevel=3,
        )


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
