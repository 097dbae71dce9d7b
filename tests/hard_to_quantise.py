"""ONNX models of the same function that INT8 ruins: what real networks do with single channels, overdone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, numpy_helper


def inject_outliers(source: Path, target: Path, factor: float) -> None:
    """Multiply four channels behind each block's LayerNorms and divide the weights that read them."""
    model = onnx.load(source)
    for number, norm in enumerate(model.graph.node):
        if norm.op_type != "LayerNormalization" or ".norm" not in norm.input[1]:
            continue
        width = len(numpy_helper.to_array(_tensor(model, norm.input[1])))
        scale = np.ones(width, np.float32)
        scale[np.random.default_rng(number).choice(width, 4, replace=False)] = factor
        for name in norm.input[1:]:
            _multiply(model, name, scale)
        for reader in model.graph.node:
            if norm.output[0] in reader.input:
                _multiply(model, reader.input[1], 1 / scale[:, None])
    onnx.save(model, target)


def ruin_projection(source: Path, target: Path, block: str, factor: float = 2.0**12) -> list[str]:
    """Make one block's attention hand on four huge channels, which its projection divides; returns that layer's name.

    No norm stands between, so that smoothing cannot help. A power of two: the answers stay bit for bit.
    """
    model = onnx.load(source)
    after = {name: node for node in reversed(model.graph.node) for name in node.input}
    before = {name: node for node in model.graph.node for name in node.output}
    names = {tensor.name for tensor in model.graph.initializer}
    split = f"{block}.attn.value.bias"  # attention in three layers, or in one
    bias = _tensor(model, split if split in names else f"{block}.attn.qkv.bias")
    width = bias.dims[0] if split in names else bias.dims[0] // 3
    scale = np.ones(bias.dims[0], np.float32)
    scale[-4:] = factor
    weight = before[next(n for n in after[bias.name].input if n != bias.name)].input[1]
    _multiply(model, bias.name, scale)
    _multiply(model, weight, scale)
    summed = after[f"{block}.attn.proj.bias"]
    projection = before[next(n for n in summed.input if n in before)]
    _multiply(model, projection.input[1], 1 / scale[-width:, None])
    onnx.save(model, target)
    return [projection.name]


def _tensor(model: ModelProto, name: str) -> onnx.TensorProto:
    return next(tensor for tensor in model.graph.initializer if tensor.name == name)


def _multiply(model: ModelProto, name: str, factor: np.ndarray) -> None:
    tensor = _tensor(model, name)
    tensor.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(tensor) * factor).astype(np.float32), name))
