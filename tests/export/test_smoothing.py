"""Smoothing an ONNX file: not a bit of the answers changes, and outliers no longer ruin INT8, on real photos."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hard_to_quantise import inject_outliers
from onnx import TensorProto, helper, numpy_helper

from edgemim.errors import UserError
from edgemim.export.onnxruntime import quantize_dynamic_onnx
from edgemim.export.openvino import missing_packages, quantize_transformer
from edgemim.export.probe import open_probe
from edgemim.export.smoothing import smooth_onnx


def logits(path: Path, images: np.ndarray) -> np.ndarray:
    probe = open_probe(path, ())
    return np.concatenate([probe({"images": image[None]})["logits"] for image in images])


def one_by_one(images: np.ndarray) -> list[dict[str, np.ndarray]]:
    return [{"images": image[None]} for image in images]


def same(a: np.ndarray, b: np.ndarray) -> float:
    return float((a.argmax(1) == b.argmax(1)).mean())


@pytest.fixture
def calibration(task) -> list[dict[str, np.ndarray]]:
    return one_by_one(np.concatenate(list(task.calibration_batches(24))))


def test_int8_collapses_and_is_restored(artifact, calibration, held_out_images: np.ndarray, tmp_path: Path) -> None:
    hard, smooth = tmp_path / "hard.onnx", tmp_path / "smooth.onnx"
    inject_outliers(artifact.file(), hard, 200.0)
    done = smooth_onnx(hard, smooth, calibration)
    assert (done.norms, done.left, done.error) == (5, 0, 0.0)  # two a block, and the one before the classifier
    expected = logits(artifact.file(), held_out_images)
    np.testing.assert_array_equal(logits(smooth, held_out_images), logits(hard, held_out_images))
    np.testing.assert_allclose(logits(smooth, held_out_images), expected, rtol=1e-3, atol=1e-4)
    found = {}
    for path in (hard, smooth):
        quantize_dynamic_onnx(path, tmp_path / "int8.onnx", full_range=True)
        found[path] = same(logits(tmp_path / "int8.onnx", held_out_images), expected)
    assert found[hard] < 0.9 and found[smooth] == 1.0
    if not missing_packages(quantize=True):
        quantize_transformer(smooth, tmp_path / "int8.xml", calibration, full_range=True)
        assert same(logits(tmp_path / "int8.xml", held_out_images), expected) == 1.0


def test_channels_end_in_like_ranges(artifact, calibration, tmp_path: Path) -> None:
    """With alpha 1 each channel's largest value is that of a power of two around 1, whatever it was."""
    hard, smooth = tmp_path / "hard.onnx", tmp_path / "smooth.onnx"
    inject_outliers(artifact.file(), hard, 200.0)
    smooth_onnx(hard, smooth, calibration, alpha=1.0)
    norm = next(node for node in onnx.load(smooth).graph.node if node.op_type == "LayerNormalization")
    probe = open_probe(smooth, [norm.output[0]])
    values = np.concatenate([probe(given)[norm.output[0]] for given in calibration])
    largest = np.abs(values).reshape(-1, values.shape[-1]).max(axis=0)
    assert largest.min() >= 2**-0.5 and largest.max() <= 2**0.5


def test_bad_arguments(artifact, calibration, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="alpha is 2"):
        smooth_onnx(artifact.file(), tmp_path / "out.onnx", calibration, alpha=2)
    with pytest.raises(UserError, match="needs images"):
        smooth_onnx(artifact.file(), tmp_path / "out.onnx", [])
    broken = [{"images": given["images"] * np.float32(np.nan)} for given in calibration[:1]]
    with pytest.raises(UserError, match="not finite"):
        smooth_onnx(artifact.file(), tmp_path / "out.onnx", broken)
    assert not (tmp_path / "out.onnx").exists()


def small_graph(path: Path, *, shared: bool = False, convolution: bool = False, turned: bool = False) -> Path:
    """LayerNorm, token 0, a linear layer; or what must be left alone."""
    draw = np.random.default_rng(0)
    floats = {"scale": np.ones(8), "shift": np.zeros(8), "w": draw.normal(size=(4, 8) if turned else (8, 4))}
    constants = [numpy_helper.from_array(value.astype(np.float32), name) for name, value in floats.items()]
    constants.append(numpy_helper.from_array(np.array(0), "zero"))
    linear = helper.make_node("Gemm", ["token", "w"], ["out"], transB=1) if turned else None
    nodes = [
        helper.make_node("LayerNormalization", ["images", "scale", "shift"], ["normed"], axis=-1),
        helper.make_node("Gather", ["normed", "zero"], ["token"], axis=1),
        linear or helper.make_node("MatMul", ["token", "w"], ["out"]),
    ]
    outputs = ["out"]
    if shared:
        nodes.append(helper.make_node("Relu", ["normed"], ["other"]))
        outputs.append("other")
    if convolution:
        nodes, outputs = [helper.make_node("Relu", ["images"], ["out"])], ["out"]
    shape = {"out": [1, 5, 8] if convolution else [1, 4], "other": [1, 5, 8]}
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 5, 8])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape[name]) for name in outputs],
        constants,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


def tokens() -> list[dict[str, np.ndarray]]:
    values = np.random.default_rng(1).normal(size=(3, 1, 5, 8)).astype(np.float32)
    values[..., 2] *= 100
    return [{"images": value} for value in values]


@pytest.mark.parametrize("turned", [True, False])
def test_a_linear_layer_behind_a_slice_counts(tmp_path: Path, turned: bool) -> None:
    path = small_graph(tmp_path / "model.onnx", turned=turned)
    assert smooth_onnx(path, tmp_path / "out.onnx", tokens()).norms == 1
    before, after = (open_probe(file, ()) for file in (path, tmp_path / "out.onnx"))
    for given in tokens():
        np.testing.assert_array_equal(before(given)["out"], after(given)["out"])


def test_what_others_read_too_is_left_alone(tmp_path: Path) -> None:
    path = small_graph(tmp_path / "model.onnx", shared=True)
    done = smooth_onnx(path, tmp_path / "out.onnx", tokens())
    assert (done.norms, done.left) == (0, 1)
    assert smooth_onnx(small_graph(path, convolution=True), tmp_path / "out.onnx", tokens()).norms == 0
    assert not (tmp_path / "out.onnx").exists()
