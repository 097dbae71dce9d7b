"""ONNX files become TensorRT engines: parsed, built strongly typed, refused with the nodes and the log's own words.

TensorRT and TensorRT-RTX share this interface; the latter builds without a GPU. Types are those of the file: strong
typing is all that TensorRT 11 knows, 10 is asked for it.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgemim.errors import ModelRefused

LARGEST_BATCH = 16
_SAID = 500
ELIMINATION_OPERATORS = frozenset({"TopK", "GatherElements", "ScatterElements", "ScatterND", "GatherND", "Sort"})
"""What dropping tokens puts into a tracker's graph, and --no-elimination leaves out."""


@dataclass(frozen=True)
class Shapes:
    """Smallest, typical and largest shape of one input, for an optimisation profile."""

    least: tuple[int, ...]
    typical: tuple[int, ...]
    largest: tuple[int, ...]

    @staticmethod
    def of(shape: Sequence[int | None], *, typical_batch: int = 1, largest_batch: int = LARGEST_BATCH) -> Shapes:
        """Shapes of a manifest's input: a free batch (None) from 1 to `largest_batch`, else the fixed one."""
        batch, *rest = shape
        sizes = tuple(int(side or 0) for side in rest)
        least, typical, largest = (1, typical_batch, largest_batch) if batch is None else (batch,) * 3
        return Shapes((least, *sizes), (typical, *sizes), (largest, *sizes))


class EngineLibrary:
    """One of the two libraries, with what it has said since it was opened.

    Attributes:
        name: "tensorrt" or "tensorrt_rtx".
        version: its version.

    Raises:
        ImportError: if it is not installed or cannot be loaded.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.module: Any = importlib.import_module(name)
        self.version: str = self.module.__version__
        self.errors: list[str] = []
        self._logger = _logger(self.module, self.errors.append)

    def build(
        self, path: Path, shapes: Mapping[str, Shapes] | Callable[[str, tuple[int, ...]], Shapes]
    ) -> memoryview | Any:
        """The engine of an ONNX file, as a buffer.

        Args:
            path: the file.
            shapes: of each input, by name or by a function of name and shape (-1 where any size goes).

        Raises:
            ModelRefused: if the parser or the builder refuses, with the nodes that they name.
        """
        self.errors.clear()
        builder = self.module.Builder(self._logger)
        strongly = getattr(self.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        network = builder.create_network(0 if strongly is None else 1 << int(strongly))
        parser = self.module.OnnxParser(network, self._logger)
        if not parser.parse_from_file(str(path)):
            faults = [parser.get_error(index) for index in range(parser.num_errors)]
            told = _nodes(faults) or self.said()
            raise ModelRefused(f"TensorRT's parser refuses {path}: {told}{_remedy(_operators(faults), told)}")
        config = builder.create_builder_config()
        # What is written as float32 is computed in float32, not in the shorter TF32.
        if (short := getattr(self.module.BuilderFlag, "TF32", None)) is not None:
            config.clear_flag(short)
        profile = builder.create_optimization_profile()
        for index in range(network.num_inputs):
            tensor = network.get_input(index)
            shape = shapes(tensor.name, tuple(tensor.shape)) if callable(shapes) else shapes[tensor.name]
            profile.set_shape(tensor.name, shape.least, shape.typical, shape.largest)
        config.add_optimization_profile(profile)
        engine = builder.build_serialized_network(network, config)
        if engine is None:  # it raises nothing, it writes to its log
            raise ModelRefused(f"TensorRT's builder refuses {path}: {self.said()}{_remedy((), self.said())}")
        return engine

    def load(self, engine: bytes) -> Any | None:
        """An engine ready to run, or None if the library turns it down (another version, another GPU, no GPU)."""
        self.errors.clear()
        self._runtime = self.module.Runtime(self._logger)  # engines need it as long as they live
        return self._runtime.deserialize_cuda_engine(engine)

    def said(self) -> str:
        """The first errors of its log, in one line."""
        return "; ".join(" ".join(error.split()) for error in self.errors[:3])[:_SAID] or "no reason given"


def any_batch(name: str, shape: tuple[int, ...]) -> Shapes:
    """Shapes of an input as the network has it, -1 where any size goes."""
    return Shapes.of([None if side < 0 else side for side in shape])


def _logger(module: Any, note: Callable[[str], None]) -> Any:  # a class of a module that may be absent
    class Log(module.ILogger):
        def __init__(self) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            if severity in (module.ILogger.Severity.ERROR, module.ILogger.Severity.INTERNAL_ERROR):
                note(message)

    return Log()


def _nodes(faults: Sequence[Any]) -> str:
    told = [
        f"node {fault.node_name() or fault.node()} ({fault.node_operator()}): {fault.desc()}" for fault in faults[:5]
    ]
    return "; ".join(" ".join(line.split()) for line in told)[:800]


def _operators(faults: Sequence[Any]) -> list[str]:
    return [fault.node_operator() for fault in faults]


def _remedy(operators: Sequence[str], told: str) -> str:
    """Where it is the dropping of tokens that is refused, the way out."""
    eliminating = ELIMINATION_OPERATORS.intersection(operators) or any(name in told for name in ELIMINATION_OPERATORS)
    return "; --no-elimination exports the tracker without such nodes" if eliminating else ""
