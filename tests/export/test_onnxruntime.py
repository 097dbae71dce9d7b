"""INT8 for ONNX Runtime: which nodes, which range, and that the file still explains itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from edgemim.errors import ModelRefused
from edgemim.export.onnx import read_metadata
from edgemim.export.onnxruntime import inner_convolutions, quantize_convolutions_onnx, quantize_dynamic_onnx


@pytest.fixture(params=[True, False], ids=["vnni", "portable"])
def full_range(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_linear_layers_are_int8_and_attention_is_float(artifact, tmp_path: Path, full_range: bool) -> None:
    path = tmp_path / "int8.onnx"
    quantize_dynamic_onnx(artifact.file(), path, full_range=full_range)
    model = onnx.load(path)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["MatMulInteger"] == 2 * 6 + 1  # two blocks of query, key, value, proj, fc1, fc2, and the head
    assert kinds["MatMul"] == 2 * 2  # q·k and attention·v have no weights
    assert kinds["Conv"] == 1
    weights = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.INT8]
    matrices = [array for array in weights if array.ndim == 2]
    assert len(matrices) == 13
    largest = max(int(np.abs(array.astype(int)).max()) for array in matrices)
    assert largest == (127 if full_range else 64)  # 64 · 255 · 2 still fits a 16-bit sum
    assert read_metadata(path) == read_metadata(artifact.file())
    assert path.stat().st_size < 0.6 * artifact.file().stat().st_size


def test_convolutions_of_a_head_are_int8_and_the_patch_embedding_is_float(
    artifact, segmenter, segmentation_task, tmp_path: Path, full_range: bool
) -> None:
    assert inner_convolutions(artifact.file()) == []
    inner = inner_convolutions(segmenter.file())
    assert len(inner) == 2 + 7 + 1  # two levels of the pyramid by convolution, 1 + 1 + 2 + 3 in the head, the classes
    path, calibration = (
        tmp_path / "int8.onnx",
        [{"images": image[None]} for batch in segmentation_task.calibration_batches(8) for image in batch],
    )
    quantize_convolutions_onnx(segmenter.file(), path, calibration, full_range=full_range)
    model = onnx.load(path)
    made_by = {output: node for node in model.graph.node for output in node.output}
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    floats = [node.name for node in convolutions if node.input[0] not in made_by]
    assert len(convolutions) - len(floats) == len(inner) and len(floats) == 1
    weights = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    largest = 0
    for node in convolutions:
        if node.name not in floats:
            assert all(made_by[name].op_type == "DequantizeLinear" for name in node.input[:2])
            weight = weights[made_by[node.input[1]].input[0]]
            assert weight.dtype == np.int8
            largest = max(largest, int(np.abs(weight.astype(int)).max()))
    assert largest == (127 if full_range else 64)
    assert Counter(node.op_type for node in model.graph.node)["MatMulInteger"] == 2 * 6
    assert read_metadata(path) == read_metadata(segmenter.file())
    assert [file.name for file in tmp_path.glob("*.onnx")] == ["int8.onnx"]


def test_a_broken_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ModelRefused, match=r"broken\.onnx"):
        quantize_dynamic_onnx(tmp_path / "broken.onnx", tmp_path / "out.onnx", full_range=True)
