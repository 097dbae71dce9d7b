"""Dynamic INT8 for ONNX Runtime: which nodes, which range, and that the file still explains itself."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from edgemim.errors import ModelRefused
from edgemim.export.onnx import read_metadata
from edgemim.export.onnxruntime import quantize_dynamic_onnx


@pytest.fixture(params=[True, False], ids=["vnni", "portable"])
def full_range(request: pytest.FixtureRequest) -> bool:
    return request.param


def test_linear_layers_are_int8_and_attention_is_float(artifact, tmp_path: Path, full_range: bool) -> None:
    path = tmp_path / "int8.onnx"
    quantize_dynamic_onnx(artifact.file(), path, full_range=full_range)
    model = onnx.load(path)
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["MatMulInteger"] == 2 * 4 + 1  # two blocks of qkv, proj, fc1, fc2, and the head
    assert kinds["MatMul"] == 2 * 2  # q·k and attention·v have no weights
    assert kinds["Conv"] == 1
    weights = [numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == TensorProto.INT8]
    matrices = [array for array in weights if array.ndim == 2]
    assert len(matrices) == 9
    largest = max(int(np.abs(array.astype(int)).max()) for array in matrices)
    assert largest == (127 if full_range else 64)  # 64 · 255 · 2 still fits a 16-bit sum
    assert read_metadata(path) == read_metadata(artifact.file())
    assert path.stat().st_size < 0.6 * artifact.file().stat().st_size


def test_a_broken_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"no model")
    with pytest.raises(ModelRefused, match=r"broken\.onnx"):
        quantize_dynamic_onnx(tmp_path / "broken.onnx", tmp_path / "out.onnx", full_range=True)
