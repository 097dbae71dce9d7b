"""SmoothQuant folded into an ONNX file: outlier channels move from activations into weights, the answers stay bit for bit."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, numpy_helper

from edgemim.errors import ModelRefused, UserError
from edgemim.export.parity import DEFAULT_TOLERANCE, compare
from edgemim.export.probe import open_probe

DEFAULT_ALPHA = 0.5
_FLOOR = 1e-5
_KEEPS_CHANNELS = {"Identity", "Slice", "Gather", "ReduceMean"}
Inputs = dict[str, np.ndarray]


@dataclass(frozen=True)
class Smoothed:
    """What was done to a file.

    Attributes:
        alpha: how much of the activations' range went into the weights.
        norms: number of LayerNorms that were folded.
        left: number of those whose readers are not all known linear layers.
        error: largest difference of the outputs, over the largest output (at least 1).
    """

    alpha: float
    norms: int
    left: int
    error: float


@dataclass(frozen=True)
class _Pair:
    norm: NodeProto
    readers: tuple[NodeProto, ...]


def smooth_onnx(source: Path, target: Path, inputs: Sequence[Inputs], *, alpha: float = DEFAULT_ALPHA) -> Smoothed:
    """Write a model whose LayerNorms are divided, and the linear layers that read them multiplied, channel by channel.

    SmoothQuant, arXiv 2211.10438, eq. 4: s = max|x|^alpha / max|w|^(1 - alpha), rounded to a power of two, so that no
    bit of the float answers changes. Only LayerNorms are touched that constant linear layers alone read, directly or
    through slices along other axes; where there are none (a convolutional network) nothing is written.

    Args:
        source: FP32 ONNX model.
        target: file to write.
        inputs: float32 inputs by name, each as large as the model takes, to take the largest activations from.
        alpha: 0 leaves activations alone, 1 makes them all alike.

    Raises:
        UserError: without inputs, or with activations that are not finite.
        ModelRefused: if ONNX Runtime cannot run the model, or the answers changed (a graph read wrongly).
    """
    if not 0 <= alpha <= 1:
        raise UserError(f"smoothing alpha is {alpha:g}; give a number from 0 to 1")
    if not inputs:
        raise UserError("smoothing needs images to take activations from; give --data DIR with images")
    model = onnx.load(source)
    pairs = list(_pairs(model))
    norms = sum(node.op_type == "LayerNormalization" for node in model.graph.node)
    if not pairs:
        return Smoothed(alpha, 0, norms, 0.0)
    largest = _largest(source, [pair.norm.output[0] for pair in pairs], inputs)
    for pair in pairs:
        _fold(model, pair, largest[pair.norm.output[0]], alpha)
    onnx.save(model, target)
    error = _difference(source, target, inputs[:4])
    if not error <= DEFAULT_TOLERANCE:
        raise ModelRefused(f"smoothing changed the answers of {source} by {error:.2g}; quantise with --no-smooth")
    return Smoothed(alpha, len(pairs), norms - len(pairs), error)


def _pairs(model: ModelProto) -> Iterator[_Pair]:
    """LayerNorms over the last axis and all the linear layers that read them, none of whose constants another node reads."""
    graph = model.graph
    sizes = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    uses: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            uses.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}
    for node in graph.node:
        if node.op_type != "LayerNormalization" or _attribute(node, "axis", -1) != -1:
            continue
        readers = _readers(node.output[0], uses, sizes, outputs)
        constants = [*node.input[1:], *(reader.input[1] for reader in readers or ())]
        own = all(len(uses[name]) == 1 for name in constants if name)
        if readers and own and all(sizes.get(name) == 1 for name in node.input[1:] if name):
            yield _Pair(node, tuple(readers))


def _readers(
    tensor: str, uses: dict[str, list[NodeProto]], sizes: dict[str, int], outputs: set[str]
) -> list[NodeProto] | None:
    """The linear layers that read a tensor's channels, or None if something else does too."""
    if tensor in outputs:
        return None
    found: list[NodeProto] = []
    for node in uses.get(tensor, []):
        if node.op_type == "Shape":
            continue
        if node.op_type in ("MatMul", "Gemm") and node.input[0] == tensor and sizes.get(node.input[1]) == 2:
            if _attribute(node, "transA", 0):
                return None
            found.append(node)
        elif node.op_type in _KEEPS_CHANNELS and node.input[0] == tensor:
            more = _readers(node.output[0], uses, sizes, outputs)
            if more is None:
                return None
            found.extend(more)
        else:
            return None
    return found


def _attribute(node: NodeProto, name: str, default: int) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), default)


def _largest(source: Path, tensors: Sequence[str], inputs: Sequence[Inputs]) -> dict[str, np.ndarray]:
    """The largest magnitude of each channel of each tensor over all inputs, float32 [channels]."""
    probe = open_probe(source, tensors)
    found: dict[str, np.ndarray] = {}
    for given in inputs:
        for name, value in probe(given).items():
            peak = np.abs(value).reshape(-1, value.shape[-1]).max(axis=0)
            found[name] = np.maximum(found[name], peak) if name in found else peak
    if not all(np.isfinite(value).all() for value in found.values()):
        raise UserError("the model's activations are not finite, so it cannot be smoothed; check its weights")
    return found


def _fold(model: ModelProto, pair: _Pair, seen: np.ndarray, alpha: float) -> None:
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}

    def multiply(name: str, factor: np.ndarray) -> None:
        tensors[name].CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensors[name]) * factor, name))

    layers = {reader.input[1]: bool(_attribute(reader, "transB", 0)) for reader in pair.readers}
    weights = np.max([_by_input(tensors[name], turned) for name, turned in layers.items()], axis=0)
    exact = np.maximum(seen, _FLOOR) ** alpha / np.maximum(weights, _FLOOR) ** (1 - alpha)
    scale = np.exp2(np.round(np.log2(exact))).astype(np.float32)
    for name in pair.norm.input[1:]:
        if name:
            multiply(name, 1 / scale)
    for name, turned in layers.items():
        multiply(name, scale[None, :] if turned else scale[:, None])


def _by_input(tensor: onnx.TensorProto, turned: bool) -> np.ndarray:
    """The largest magnitude of a linear layer's weights for each input channel."""
    return np.abs(numpy_helper.to_array(tensor)).max(axis=0 if turned else 1)


def _difference(source: Path, target: Path, inputs: Sequence[Inputs]) -> float:
    """The middle one of the inputs' largest differences: where tokens are eliminated, a tie may fall the other way."""
    before, after = open_probe(source, ()), open_probe(target, ())
    errors = []
    for given in inputs:
        expected, found = before(given), after(given)
        errors.append(max(compare(expected[name], found[name]).relative_error for name in expected))
    return float(np.median(errors))
