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
from edgemim.export.tensorrt import HalfInside, Shapes, build_with_rtx, quantize_symmetric, write_plan

SHAPES = {"images": Shapes.of((None, 3, 32, 32))}


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trt")
    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10).eval()
    images = torch.randn(8, 3, 32, 32)
    export_onnx(model, images[:2], folder / "model.onnx")
    export_onnx(HalfInside(model), images[:2], folder / "model-fp16.onnx")
    rows = [{"images": image[None].numpy()} for image in images]
    quantize_symmetric(folder / "model.onnx", folder / "model-int8-qdq.onnx", rows)
    quantize_dynamic_onnx(folder / "model.onnx", folder / "dynamic.onnx", full_range=True)
    with torch.no_grad():
        truth = model(images).numpy()
    return folder, images.numpy(), truth


def run(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"images": images})[0]


@pytest.mark.parametrize(("name", "bound"), [("model-fp16.onnx", 0.9999), ("model-int8-qdq.onnx", 0.999)])
def test_the_lowered_files_answer_as_the_model(files, name, bound):
    folder, images, truth = files
    found = run(folder / name, images)
    cosine = (found * truth).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(truth, axis=1)
    assert found.dtype == np.float32 and cosine.min() > bound


def test_pairs_are_signed_symmetric_and_leave_biases_and_products_in_float(files):
    graph = onnx.load(files[0] / "model-int8-qdq.onnx").graph
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


@pytest.mark.parametrize("name", ["model.onnx", "model-fp16.onnx", "model-int8-qdq.onnx"])
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


def test_the_plan_names_files_shapes_and_both_generations(files, tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes((files[0] / "model.onnx").read_bytes())
    plan = json.loads(write_plan(tmp_path, {"fp32": path}, SHAPES, checked={}, versions={"torch": "2"}).read_text())
    assert plan["inputs"]["images"] == {"min": [1, 3, 32, 32], "opt": [1, 3, 32, 32], "max": [16, 3, 32, 32]}
    line = plan["tensorrt_11"]["fp32"]
    assert line.startswith("trtexec --onnx=model.onnx --saveEngine=model.plan --minShapes=images:1x3x32x32")
    # 11 knows no precision flags; 10 must be told to take the types from the file.
    assert "--fp16" not in line and "--int8" not in line and "--stronglyTyped" not in line
    assert plan["tensorrt_10"]["fp32"] == line + " --stronglyTyped"
    fixed = {"images": Shapes.of((1, 3, 32, 32))}
    plan = json.loads(write_plan(tmp_path, {"fp32": path}, fixed, checked={}, versions={}).read_text())
    assert plan["tensorrt_11"]["fp32"] == "trtexec --onnx=model.onnx --saveEngine=model.plan"
