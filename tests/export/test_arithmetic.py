"""Operations counted in a graph are those that torch's own counter finds in the module."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
import timm
import torch
from onnx import TensorProto, helper
from tiny_artifact import tiny_artifact
from tiny_tracker import tiny_tracker
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from edgemim.export.arithmetic import count_gflop, gflop_of
from edgemim.export.onnx import export_onnx


def counted_by_torch(module: nn.Module, images: torch.Tensor) -> float:
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        module(images)
    return counter.get_total_flops() / 1e9


@pytest.mark.parametrize("dynamic", [True, False])
@pytest.mark.parametrize("opset", [18, 23])
def test_a_vision_transformer(tmp_path: Path, dynamic: bool, opset: int) -> None:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
    model = timm.create_model("vit_tiny_patch16_224", **sizes).eval()
    path = tmp_path / "model.onnx"
    export_onnx(model, torch.zeros(2 if dynamic else 1, 3, 32, 32), path, opset=opset, dynamic_batch=dynamic)
    expected = counted_by_torch(model, torch.zeros(1, 3, 32, 32))
    assert count_gflop(path) == pytest.approx(expected, rel=1e-6)
    if dynamic:
        assert count_gflop(path, batch=4) == pytest.approx(4 * expected, rel=1e-6)


def test_convolutions_grouped_strided_and_transposed(tmp_path: Path) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, padding=1),
        nn.Conv2d(8, 8, 3, groups=8, padding=1),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 5),
    ).eval()
    path = tmp_path / "model.onnx"
    export_onnx(model, torch.zeros(2, 3, 32, 32), path)
    assert count_gflop(path) == pytest.approx(counted_by_torch(model, torch.zeros(1, 3, 32, 32)), rel=1e-6)


def test_a_shape_that_nobody_knows_gives_no_count(tmp_path: Path) -> None:
    nodes = [
        helper.make_node("NonZero", ["x"], ["found"]),
        helper.make_node("Cast", ["found"], ["y"], to=1),
        helper.make_node("MatMul", ["y", "x"], ["z"]),
    ]
    graph = helper.make_graph(
        nodes,
        "unknown",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [4, 4])],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, None)],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), tmp_path / "m.onnx")
    assert count_gflop(tmp_path / "m.onnx") is None


def test_what_a_manifest_says(tmp_path: Path) -> None:
    artifact = tiny_artifact(tmp_path / "a", size=16, width=32, int8=True)
    found = gflop_of(artifact.folder, artifact.manifest.files)
    assert found == {"onnx-fp32": pytest.approx(2e-9 * (3 * 16 * 16 * 32 + 32 * 4))}
    tracker = tiny_tracker(tmp_path / "b", "cached")  # averages only: nothing that is counted
    assert gflop_of(tracker.folder, tracker.manifest.files) == {}
