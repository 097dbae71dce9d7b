"""An exported graph's layers are sorted into the blocks that the model has."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgemim.export.graph_blocks import blocks_of


def test_a_vit(artifact) -> None:
    blocks = blocks_of(artifact.file())
    assert [block.name for block in blocks] == ["patch_embed", "blocks.0", "blocks.1", "head"]
    assert [len(block.nodes) for block in blocks] == [1, 8, 8, 1]  # q, k, v, two products, proj, fc1, fc2
    graph = onnx.load(artifact.file()).graph
    linear = [node.name for node in graph.node if node.op_type in ("MatMul", "Gemm", "Conv")]
    assert [name for block in blocks for name in block.nodes] == linear
    made = {name for node in graph.node for name in node.output}
    assert {block.end for block in blocks} <= made and blocks[-1].end == "logits"


def test_a_segmenter(segmenter) -> None:
    names = [block.name for block in blocks_of(segmenter.file())]
    assert any(name.endswith("blocks.0") for name in names) and len(names) == len(set(names))


@pytest.mark.parametrize(
    ("parameter", "name"),
    [
        ("blocks.1.0.conv_pw.weight", "blocks.1.0"),
        ("stages.0.blocks.3.mixer.weight", "stages.0.blocks.3"),
        ("encoder.vit.blocks.11.mlp.fc2.weight", "encoder.vit.blocks.11"),
        ("fc_norm.weight", "fc_norm"),
        ("head.2.conv.weight", "head"),
    ],
)
def test_names_of_parameters(tmp_path: Path, parameter: str, name: str) -> None:
    import numpy as np

    weight = numpy_helper.from_array(np.ones((4, 4), np.float32), parameter)
    shape = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4])
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4])
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", parameter], ["y"], name="m")], "g", [shape], [out], [weight]
    )
    onnx.save(helper.make_model(graph), tmp_path / "model.onnx")
    [block] = blocks_of(tmp_path / "model.onnx")
    assert (block.name, block.nodes, block.end) == (name, ("m",), "y")
