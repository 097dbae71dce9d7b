"""Files for TensorRT: what its parser takes and refuses, checked by tensorrt-rtx, which needs no GPU to build."""

import json
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from timm.models.vision_transformer import VisionTransformer

from edgemim.errors import MissingLibrary, ModelRefused
from edgemim.export.onnx import export_onnx
from edgemim.export.onnxruntime import quantize_dynamic_onnx
from edgemim.export.reduced import halve_onnx
from edgemim.export.tensorrt import Shapes, build_with_rtx, quantize_symmetric, shapes_of, write_plan

SHAPES = {"images": Shapes.of((None, 3, 32, 32))}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trt")
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10).eval()
    images = torch.randn(8, 3, 32, 32)
    export_onnx(model, images[:2], folder / "model.onnx")
    halve_onnx(folder / "model.onnx", folder / "model-fp16.onnx")
    rows = [{"images": image[None].numpy()} for image in images]
    quantize_symmetric(folder / "model.onnx", folder / "model-int8.onnx", rows)
    quantize_dynamic_onnx(folder / "model.onnx", folder / "dynamic.onnx", full_range=True)
    with torch.no_grad():
        truth = model(images).numpy()
    return folder, images.numpy(), truth


def run(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


@pytest.mark.parametrize(("name", "bound"), [("model-fp16.onnx", 0.9999), ("model-int8.onnx", 0.999)])
def test_the_lowered_files_answer_as_the_model(files, name, bound):
    folder, images, truth = files
    found = run(folder / name, images)
    cosine = (found * truth).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(truth, axis=1)
    assert found.dtype == np.float32 and cosine.min() > bound


def test_pairs_are_signed_symmetric_and_leave_biases_and_products_in_float(files):
    graph = onnx.load(files[0] / "model-int8.onnx").graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    pairs = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    zeros = [constants[node.input[2]] for node in pairs]
    assert pairs and all(zero.dtype == np.int8 and not zero.any() for zero in zeros)
    makers = {output: node.op_type for node in graph.node for output in node.output}
    float_products = 0
    for node in graph.node:
        if node.op_type == "MatMul":
            sources = {makers.get(name, "") for name in node.input}
            assert sources == {"DequantizeLinear"} or "DequantizeLinear" not in sources
            float_products += "DequantizeLinear" not in sources
    assert float_products == 4  # two products of attention in each of two blocks


@pytest.mark.parametrize("name", ["model.onnx", "model-fp16.onnx", "model-int8.onnx"])
def test_tensorrt_rtx_builds_what_is_written_for_it(files, name):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'edgemim[tensorrt]'")
    built = build_with_rtx(files[0] / name, SHAPES)
    assert built.engine_bytes > 10_000 and built.version


def test_a_file_for_another_runtime_is_refused_by_its_nodes(files):
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'edgemim[tensorrt]'")
    with pytest.raises(ModelRefused, match=r"dynamic\.onnx: node .*DynamicQuantizeLinear"):
        build_with_rtx(files[0] / "dynamic.onnx", SHAPES)


def test_without_tensorrt_rtx_the_message_says_how_to_get_it(files, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    with pytest.raises(MissingLibrary, match=r"edgemim\[tensorrt\]"):
        build_with_rtx(files[0] / "model.onnx", SHAPES)


def test_shapes_are_the_files_own(files, tmp_path):
    assert shapes_of(files[0] / "model.onnx") == SHAPES
    export_onnx(
        Two(), (torch.zeros(1, 3), torch.zeros(2, 3)), tmp_path / "two.onnx", input_name=("a", "b"), dynamic_batch=False
    )
    assert shapes_of(tmp_path / "two.onnx") == {"a": Shapes.of((1, 3)), "b": Shapes.of((2, 3))}


class Two(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(3, 4)

    def forward(self, a, b):
        return self.linear(a + b), self.linear(b)


def test_a_heads_convolutions_are_quantised_and_the_patch_embedding_is_not(tmp_path):
    torch.manual_seed(0)
    module = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 4, 4), torch.nn.ReLU(), torch.nn.Conv2d(8, 4, 3, padding=1)
    ).eval()
    images = torch.randn(4, 3, 16, 16)
    export_onnx(module, images[:2], tmp_path / "head.onnx")
    quantize_symmetric(
        tmp_path / "head.onnx", tmp_path / "int8.onnx", [{"images": image[None].numpy()} for image in images]
    )
    graph = onnx.load(tmp_path / "int8.onnx").graph
    makers = {output: node.op_type for node in graph.node for output in node.output}
    read = [makers.get(node.input[1], "") for node in graph.node if node.op_type == "Conv"]
    assert read == ["", "DequantizeLinear"]
    with torch.no_grad():
        truth = module(images).numpy()
    assert np.abs(run(tmp_path / "int8.onnx", images.numpy()) - truth).max() < 0.05 * np.abs(truth).max()


def test_the_plan_names_files_shapes_and_both_generations(files, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes((files[0] / "model.onnx").read_bytes())
    plan = json.loads(write_plan(tmp_path, {"fp32": path}, checked={}, versions={"torch": "2"}).read_text())
    assert plan["inputs"]["images"] == {"min": [1, 3, 32, 32], "opt": [1, 3, 32, 32], "max": [16, 3, 32, 32]}
    assert plan["files"]["fp32"]["inputs"] == ["images"]
    line = plan["tensorrt_11"]["fp32"]
    assert line.startswith("trtexec --onnx=model.onnx --saveEngine=model.plan --minShapes=images:1x3x32x32")
    # 11 knows no precision flags; 10 must be told to take the types from the file.
    assert "--fp16" not in line and "--int8" not in line and "--stronglyTyped" not in line
    assert plan["tensorrt_10"]["fp32"] == line + " --stronglyTyped"


def test_a_trackers_fixed_graphs_have_lines_of_their_own_without_shapes(tmp_path):
    for suffix in ("", "-template"):
        export_onnx(
            Two(), (torch.zeros(1, 3), torch.zeros(2, 3)), tmp_path / f"model{suffix}.onnx",
            input_name=(f"search{suffix}", "cache_k"), dynamic_batch=False,
        )  # fmt: skip
    given = {f"fp16{suffix}": tmp_path / f"model{suffix}.onnx" for suffix in ("", "-template")}
    plan = json.loads(write_plan(tmp_path, given, checked={}, versions={}).read_text())
    assert plan["tensorrt_11"] == {
        "fp16": "trtexec --onnx=model.onnx --saveEngine=model.plan",
        "fp16-template": "trtexec --onnx=model-template.onnx --saveEngine=model-template.plan",
    }
    assert plan["files"]["fp16-template"]["inputs"] == ["cache_k", "search-template"]
    assert plan["inputs"]["search"] == {name: [1, 3] for name in ("min", "opt", "max")}
