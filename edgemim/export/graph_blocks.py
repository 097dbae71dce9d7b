"""The blocks of an ONNX graph: which layers belong together, and the tensor that each block ends in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import onnx
from onnx import NodeProto

_REPEATED = re.compile(r"(?:\w+\.)*?(?:blocks|stages|layers)(?:\.\d+)+(?:\.(?:blocks|layers)(?:\.\d+)+)?(?=\.)")
_QUANTISED = {"MatMul", "Gemm", "Conv"}


@dataclass(frozen=True)
class Block:
    """A block as the model names it ("blocks.3", "patch_embed", "head").

    Attributes:
        name: its place in the model.
        nodes: names of its nodes that a quantiser may turn into INT8, in order.
        end: the tensor that it hands on, or that leaves the model.
    """

    name: str
    nodes: tuple[str, ...]
    end: str


def blocks_of(path: Path) -> list[Block]:
    """Blocks with layers that can be quantised, in order of computation, by the names that parameters kept at export.

    A layer whose weight lost its name (exporters turn matrices) is known by its bias; a product of activations belongs
    to the block before it.
    """
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    home = _homes(list(graph.node), constants)
    readers: dict[str, list[NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    nodes: dict[str, list[str]] = {}
    ends: dict[str, str] = {}
    for node in graph.node:
        block = home[node.name]
        if node.op_type in _QUANTISED:
            nodes.setdefault(block, []).append(node.name)
        leaves = any(home[reader.name] != block for reader in readers.get(node.output[0], []))
        if node.op_type not in ("Shape", "Constant") and (leaves or node.output[0] in outputs):
            ends[block] = node.output[0]
    return [Block(block, tuple(nodes[block]), ends[block]) for block in nodes if block in ends]


def _homes(nodes: list[NodeProto], constants: set[str]) -> dict[str, str]:
    """The block of each node by the node's name."""
    after = {name: node for node in reversed(nodes) for name in node.input}
    home: dict[str, str] = {}
    current = ""
    for node in nodes:
        named = _named(node, constants)
        if not named and node.op_type in _QUANTISED and node.input[1] in constants:
            reader = after.get(node.output[0])
            named = _named(reader, constants) if reader is not None else ""
        current = named or current
        home[node.name] = current
    return home


def _named(node: NodeProto, constants: set[str]) -> str:
    """The block that a node's parameters name, or ''."""
    for name in node.input:
        if name in constants and "." in name:
            repeated = _REPEATED.match(name)
            return repeated[0] if repeated else name.split(".")[0]
    return ""
