"""float16 files keep their names, float32 ends and answers; bfloat16 is an entry, not a file."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from edgemim.edge.artifact import Artifact
from edgemim.edge.runtime import open_session
from edgemim.errors import ModelRefused, UserError
from edgemim.export import reduced
from edgemim.export.reduced import halve_onnx, precision_of, require_bf16, write_bf16, write_fp16


def test_half_the_bytes_and_almost_the_same_answers(artifact: Artifact, held_out_images: np.ndarray) -> None:
    pytest.importorskip("openvino", reason="OpenVINO: pip install 'edgemim[openvino]'")
    entries = write_fp16(artifact.folder, artifact.manifest.files, openvino=True)
    assert set(entries) == {"onnx-fp16", "openvino-fp16"}
    files = {**artifact.manifest.files, **entries}
    artifact = Artifact(artifact.folder, artifact.manifest.model_copy(update={"files": files}))
    expected = open_session(artifact).run({"images": held_out_images})["logits"]
    for key, entry in entries.items():
        assert entry.precision == "fp16"
        logits = open_session(artifact, key).run({"images": held_out_images})["logits"]
        assert logits.dtype == np.float32
        assert 0 < np.abs(logits - expected).max() < 5e-3 * max(1, np.abs(expected).max()), key
    weights = {
        name: sum(t.ByteSize() for t in _graph(artifact, name).initializer) for name in ("onnx-fp32", "onnx-fp16")
    }
    assert weights["onnx-fp16"] < 0.55 * weights["onnx-fp32"]
    binaries = [(artifact.folder / f"openvino-{name}.bin").stat().st_size for name in ("fp16", "fp32")]
    assert binaries[0] < 0.55 * binaries[1]


def test_norms_and_softmax_stay_in_float32(artifact: Artifact) -> None:
    write_fp16(artifact.folder, artifact.manifest.files, openvino=False)
    graph = onnx.shape_inference.infer_shapes(onnx.load(artifact.folder / "model-fp16.onnx")).graph
    types = {value.name: value.type.tensor_type.elem_type for value in graph.value_info}
    sums = [node.output[0] for node in graph.node if node.op_type in reduced.FLOAT_OPS]
    assert len(sums) > 4
    assert {types[name] for name in sums} == {TensorProto.FLOAT}
    products = [node.output[0] for node in graph.node if node.op_type == "MatMul"]
    assert {types[name] for name in products} == {TensorProto.FLOAT16}


def test_the_file_still_says_what_it_is(artifact: Artifact) -> None:
    before = onnx.load(artifact.file()).metadata_props
    halve_onnx(artifact.file(), artifact.folder / "half.onnx")
    assert list(onnx.load(artifact.folder / "half.onnx").metadata_props) == list(before) != []


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_bytes(b"no model")
    with pytest.raises(ModelRefused, match=r"m\.onnx cannot be written in float16"):
        halve_onnx(tmp_path / "m.onnx", tmp_path / "half.onnx")


def test_bfloat16_is_the_same_file_computed_otherwise(artifact: Artifact) -> None:
    pytest.importorskip("openvino", reason="OpenVINO: pip install 'edgemim[openvino]'")
    files = artifact.manifest.files
    [(key, entry)] = write_bf16(files).items()
    assert (key, entry.execution, entry.precision) == ("openvino-bf16", "bf16", "bf16")
    assert entry.sha256 == files["openvino-fp32"].sha256


def test_bfloat16_is_refused_where_it_cannot_be_judged(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="add --openvino"):
        require_bf16(openvino=False)
    monkeypatch.setattr(reduced, "cpu_flags", lambda: ("avx512_vnni",))
    with pytest.raises(UserError, match="no instructions for bfloat16"):
        require_bf16(openvino=True)
    monkeypatch.setattr(reduced, "cpu_flags", lambda: ("avx512_bf16",))
    require_bf16(openvino=True)


def test_the_precision_stands_in_the_key() -> None:
    names = ("onnxruntime", "openvino_ir", "onnx-fp16", "openvino-bf16-template")
    assert [precision_of(name) for name in names] == ["fp32", "fp32", "fp16", "bf16"]


def _graph(artifact: Artifact, key: str) -> onnx.GraphProto:
    return onnx.load(artifact.file(key)).graph
