"""ONNX files on TensorRT (10 or 11, or TensorRT-RTX): an engine built on this machine's GPU, cached, fed through CUDA."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from edgemim.edge.artifact import Artifact
from edgemim.edge.cuda import Cuda
from edgemim.edge.machine import INSTALL
from edgemim.edge.runtime.engine_cache import EngineCache, engine_key
from edgemim.edge.runtime.engines import LARGEST_BATCH, EngineLibrary, any_batch
from edgemim.edge.runtime.external_data import check_external_data
from edgemim.edge.runtime.session import check_inputs
from edgemim.errors import MissingLibrary, ModelRefused, UserError

Buffer = tuple[int, int]
"""Address on the GPU and bytes."""


class TensorRtSession:
    """An engine with its inputs' and outputs' memory on the GPU; one run at a time.

    Attributes:
        built: whether the engine was built for this session, not taken from the cache.
        threads: CPU threads that compute: none but the one that feeds the GPU.
    """

    runtime = "tensorrt"

    def __init__(self, engine: Any, library: EngineLibrary, cuda: Cuda, precision: str, *, built: bool) -> None:
        self.precision, self.threads, self.built = precision, 1, built
        self.library = f"{library.name} {library.version}"
        self._library, self._engine, self._cuda = library, engine, cuda
        self._context = engine.create_execution_context()
        if self._context is None:
            raise ModelRefused(f"TensorRT cannot run the engine: {library.said()}")
        self._stream = cuda.stream()
        self._buffers: dict[str, Buffer] = {}
        self._inputs, self._outputs, self._largest = {}, [], {}
        for name in map(engine.get_tensor_name, range(engine.num_io_tensors)):
            if engine.get_tensor_mode(name) == library.module.TensorIOMode.INPUT:
                self._inputs[name] = tuple(None if side < 0 else side for side in engine.get_tensor_shape(name))
                self._largest[name] = tuple(engine.get_tensor_profile_shape(name, 0)[2])
            else:
                self._outputs.append(name)

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run one batch and wait for it. Raises UserError on inputs that do not fit, ModelRefused if the GPU refuses."""
        check_inputs(inputs, self._inputs)
        self._cuda.enter()
        for name, array in inputs.items():
            if any(side > most for side, most in zip(array.shape, self._largest[name], strict=True)):
                raise UserError(
                    f"input '{name}' is {array.shape}; the engine was built for {self._largest[name]} at most"
                )
            self._context.set_input_shape(name, array.shape)
            self._cuda.upload(self._place(name, array.nbytes), np.ascontiguousarray(array), self._stream)
        outputs = {name: self._output(name) for name in self._outputs}
        for name, array in outputs.items():
            self._place(name, array.nbytes)
        if not self._context.execute_async_v3(self._stream):
            raise ModelRefused(f"TensorRT refuses the run: {self._library.said()}")
        for name, array in outputs.items():
            self._cuda.download(array, self._buffers[name][0], self._stream)
        self._cuda.synchronize(self._stream)
        return outputs

    def _output(self, name: str) -> np.ndarray:
        shape = tuple(self._context.get_tensor_shape(name))
        if math.prod(shape) < 0:
            raise ModelRefused(f"the shape of output '{name}' follows from values, which this runtime does not read")
        return np.empty(shape, self._library.module.nptype(self._engine.get_tensor_dtype(name)))

    def _place(self, name: str, size: int) -> int:
        """The tensor's address on the GPU, with room for so many bytes."""
        pointer, room = self._buffers.get(name, (0, 0))
        if size > room:
            if pointer:
                self._cuda.free(pointer)
                del self._buffers[name]
            pointer = self._cuda.allocate(size)
            self._buffers[name] = pointer, size
            self._context.set_tensor_address(name, pointer)
        return pointer

    def close(self) -> None:
        """Give the GPU's memory back."""
        for pointer, _ in self._buffers.values():
            self._cuda.free(pointer)
        self._buffers.clear()


def open_library() -> EngineLibrary:
    """TensorRT, else TensorRT-RTX. Raises MissingLibrary if neither can be loaded, with what stood in the way."""
    reasons = []
    for name in ("tensorrt", "tensorrt_rtx"):
        try:
            return EngineLibrary(name)
        except (ImportError, OSError, AttributeError) as error:  # an empty stub has no version
            reasons.append(f"{name}: {error}")
    raise MissingLibrary(f"TensorRT cannot be loaded ({'; '.join(reasons)}): {INSTALL['tensorrt']}")


def open_engine(
    path: Path, sha256: str, precision: str, *, library: EngineLibrary, cuda: Cuda, cache: EngineCache
) -> TensorRtSession:
    """A session of an ONNX file, its engine from the cache or built now. Raises ModelRefused."""
    facts = {
        "device": cuda.name,
        "capability": cuda.capability,
        "driver": cuda.driver,
        "library": [library.name, library.version],
        "model_sha256": sha256,
        "largest_batch": LARGEST_BATCH,
    }
    engine, built = cache.ready(
        engine_key(facts), build=lambda: bytes(library.build(path, any_batch)), load=library.load
    )
    return TensorRtSession(engine, library, cuda, precision, built=built)


def open_file(artifact: Artifact, key: str, threads: int) -> TensorRtSession:
    """Open an ONNX file of an artifact on the first GPU. Building takes seconds to minutes, once for each GPU.

    Raises UserError on files that the manifest does not list, MissingLibrary, NoGpu, ModelRefused.
    """
    entry = artifact.entry(key)
    check_external_data(artifact, entry)
    library, cuda = open_library(), Cuda()
    return open_engine(
        artifact.file(key), entry.sha256, entry.precision, library=library, cuda=cuda, cache=EngineCache()
    )
