"""How much arithmetic one run of an ONNX model takes, counted from the shapes in its graph."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import onnx
from onnx import helper, shape_inference

from edgemim.edge.artifact import ModelFile

_Shape = tuple[int, ...]
_Shapes = Mapping[str, _Shape]


def count_gflop(path: Path, batch: int = 1) -> float | None:
    """GFLOP of one run: matrix products and convolutions, two operations a multiply-add; None if a shape is unknown.

    Additions, activations, normalisation and softmax are not counted, as in most papers' tables.
    """
    model = onnx.load(path, load_external_data=False)
    for value in model.graph.input:
        axes = value.type.tensor_type.shape.dim
        if axes and not axes[0].HasField("dim_value"):
            axes[0].dim_value = batch
    try:
        model = shape_inference.infer_shapes(model, data_prop=True)
        shapes = _known_shapes(model.graph)
        return (
            sum(_COUNTERS[node.op_type](node, shapes) for node in model.graph.node if node.op_type in _COUNTERS) / 1e9
        )
    except (KeyError, shape_inference.InferenceError):
        return None


def gflop_of(folder: Path, files: Mapping[str, ModelFile]) -> dict[str, float]:
    """What a manifest says of its FP32 ONNX files, by key; a file that cannot be counted is left out."""
    counted = {
        key: count_gflop(folder / entry.path)
        for key, entry in files.items()
        if (entry.format, entry.precision) == ("onnx", "fp32")
    }
    return {key: gflop for key, gflop in counted.items() if gflop}


def _known_shapes(graph: onnx.GraphProto) -> dict[str, _Shape]:
    """Shapes of all values that have one; a value with an axis of unknown size is left out."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        axes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(axis.HasField("dim_value") for axis in axes):
            shapes[value.name] = tuple(axis.dim_value for axis in axes)
    return shapes


def _product(node: onnx.NodeProto, shapes: _Shapes) -> int:
    """MatMul: each number of the result is a sum over the first factor's last axis."""
    return 2 * math.prod(shapes[node.output[0]]) * shapes[node.input[0]][-1]


def _general_product(node: onnx.NodeProto, shapes: _Shapes) -> int:
    rows, columns = shapes[node.input[0]]
    turned = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return 2 * math.prod(shapes[node.output[0]]) * (rows if turned else columns)


def _convolution(node: onnx.NodeProto, shapes: _Shapes) -> int:
    """Conv: weights [out, in / groups, kernel...]; each number of the result is a sum over all but the first axis."""
    return 2 * math.prod(shapes[node.output[0]]) * math.prod(shapes[node.input[1]][1:])


def _transposed_convolution(node: onnx.NodeProto, shapes: _Shapes) -> int:
    """ConvTranspose: weights [in, out / groups, kernel...]; each number that goes in is spread over all but the first."""
    return 2 * math.prod(shapes[node.input[0]]) * math.prod(shapes[node.input[1]][1:])


def _attention(node: onnx.NodeProto, shapes: _Shapes) -> int:
    """Attention of opset 23, heads apart [b, heads, tokens, d] or side by side [b, tokens, heads · d]: two products."""
    queries, keys, values = (shapes[name] for name in node.input[:3])
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    heads = queries[1] if len(queries) == 4 else 1
    if len(queries) == 3 and attributes.get("q_num_heads") != attributes.get("kv_num_heads"):
        raise KeyError(node.name)  # shared keys and values: not what we export
    return 2 * queries[0] * heads * queries[-2] * keys[-2] * (queries[-1] + values[-1])


_COUNTERS: dict[str, Callable[[onnx.NodeProto, _Shapes], int]] = {
    "MatMul": _product,
    "Gemm": _general_product,
    "Conv": _convolution,
    "ConvTranspose": _transposed_convolution,
    "Attention": _attention,
}
