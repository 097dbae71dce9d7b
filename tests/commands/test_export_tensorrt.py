"""`edgemim export --tensorrt`: judged files, a plan, and exit codes that say what was missing."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from small_tracker import small_tracker

from edgemim.cli import main
from edgemim.commands import export_tensorrt
from edgemim.edge.artifact import Artifact, sha256_of
from edgemim.edge.runtime import open_session
from edgemim.errors import ModelRefused, UserError
from edgemim.export.tensorrt import Built
from edgemim.tasks.comparison import Limits


@pytest.fixture
def run(small_finetune_run: Path, tmp_path: Path) -> Path:
    return shutil.copytree(small_finetune_run, tmp_path / "run")


def test_files_plan_and_check(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'edgemim[tensorrt]'")
    assert main(["export", str(run), "--tensorrt", "--calibration", "40"]) == 0
    folder = run / "artifact" / "tensorrt"
    plan = json.loads((folder / "trt_plan.json").read_text())
    assert set(plan["files"]) == {"fp32", "fp16", "int8"}
    for entry in plan["files"].values():
        assert sha256_of(folder / entry["path"]) == entry["sha256"]
        assert plan["tensorrt_11"] and "--fp16" not in json.dumps(plan["tensorrt_11"])
    assert all(state["built"] for state in plan["checked_by_tensorrt_rtx"].values())
    assert plan["fidelity"]["int8"]["agreement"] >= 99 and plan["fidelity"]["fp16"]["cosine"] > 0.9999
    assert plan["files"]["int8"]["bytes"] < plan["files"]["fp32"]["bytes"]
    # The manifest names them for TensorRT alone: no runtime of the CPU is offered them.
    artifact = Artifact.open(run / "artifact")
    assert set(artifact.manifest.files) == {"onnx-fp32", "tensorrt-fp32", "tensorrt-fp16", "tensorrt-int8"}
    assert artifact.entry("tensorrt-int8").precision == "int8"
    with pytest.raises(UserError, match="runtime 'onnxruntime' does not read tensorrt files"):
        open_session(artifact, "tensorrt-fp16", runtime="onnxruntime")
    images = np.random.default_rng(0).standard_normal((3, 3, 64, 64)).astype(np.float32)
    answers = [
        onnxruntime.InferenceSession(folder / entry["path"]).run(None, {"images": images})[0]
        for entry in plan["files"].values()
    ]
    assert all(np.allclose(answer, answers[0], atol=0.3) for answer in answers)
    assert "built by tensorrt-rtx" in capsys.readouterr().out


def test_without_the_checker_the_files_are_there_and_the_code_says_so(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", None)
    assert main(["export", str(run), "--tensorrt"]) == 4
    plan = json.loads((run / "artifact" / "tensorrt" / "trt_plan.json").read_text())
    assert set(plan["files"]) == {"fp32", "fp16", "int8"}
    assert not plan["checked_by_tensorrt_rtx"]["fp16"]["built"]
    assert "edgemim[tensorrt]" in capsys.readouterr().err
    assert Artifact.open(run / "artifact")


def test_a_file_that_the_parser_refuses_is_in_the_plan_and_not_in_the_manifest(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusing(path: Path, shapes: object) -> Built:
        if "fp16" in path.name:
            raise ModelRefused(f"TensorRT's parser refuses {path}: node top (TopK): too many; --no-elimination ...")
        return Built("1.7", 1000, 0.1)

    monkeypatch.setattr(export_tensorrt, "build_with_rtx", refusing)
    assert main(["export", str(run), "--tensorrt", "--calibration", "40"]) == 6
    plan = json.loads((run / "artifact" / "tensorrt" / "trt_plan.json").read_text())
    assert plan["checked_by_tensorrt_rtx"]["fp16"]["refused"] and "fp16" in plan["files"]
    files = Artifact.open(run / "artifact").manifest.files
    assert set(files) == {"onnx-fp32", "tensorrt-fp32", "tensorrt-int8"}
    assert "node top (TopK)" in capsys.readouterr().err


def test_an_int8_file_that_collapsed_is_not_kept(
    run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its activations' ranges are a hundredth of the measured ones, as from a bad calibration: all is cut off."""

    def shrunk(source: Path, target: Path, inputs: list[dict[str, np.ndarray]]) -> None:
        honest(source, target, inputs)
        model = onnx.load(target)
        scales = {node.input[1] for node in model.graph.node if node.op_type == "QuantizeLinear"}
        for tensor in model.graph.initializer:
            if tensor.name in scales:
                values = onnx.numpy_helper.to_array(tensor)
                if values.ndim == 0:
                    tensor.CopyFrom(onnx.numpy_helper.from_array(values / 100, tensor.name))
        onnx.save(model, target)

    honest = export_tensorrt.quantize_symmetric
    monkeypatch.setattr(export_tensorrt, "quantize_symmetric", shrunk)
    assert main(["export", str(run), "--tensorrt"]) == 3
    folder = run / "artifact" / "tensorrt"
    plan = json.loads((folder / "trt_plan.json").read_text())
    assert set(plan["files"]) == {"fp32", "fp16"}
    assert plan["fidelity"]["int8"]["refused"]
    assert "tensorrt-int8" not in Artifact.open(run / "artifact").manifest.files
    assert sorted(path.name for path in folder.iterdir()) == ["model-fp16.onnx", "model-fp32.onnx", "trt_plan.json"]
    assert "not kept for TensorRT" in capsys.readouterr().err


@pytest.mark.parametrize("attention", ["joint", "cached"])
def test_a_trackers_graphs_are_written_judged_and_built(
    attention: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Joint with its elimination, and cached as two graphs that belong together."""
    # A tracker of two epochs may find another box of six in INT8; what the gate does then is tested above.
    monkeypatch.setattr(export_tensorrt, "limits_of", lambda task, config: Limits(100.0, 50.0, 0.9))
    pytest.importorskip("tensorrt_rtx", reason="tensorrt-rtx is not installed: pip install 'edgemim[tensorrt]'")
    run = small_tracker(tmp_path, attention)
    out = tmp_path / "artifact"
    options = ["--calibration", "8", "--parity-images", "6", "--out", str(out)]
    assert main(["export", str(run), "--tensorrt", *options]) == 0
    plan = json.loads((out / "tensorrt" / "trt_plan.json").read_text())
    suffixes = ("", "-template") if attention == "cached" else ("",)
    names = {f"{precision}{suffix}" for precision in ("fp32", "fp16", "int8") for suffix in suffixes}
    assert set(plan["files"]) == set(plan["tensorrt_11"]) == set(plan["tensorrt_10"]) == names
    assert {name for name, state in plan["checked_by_tensorrt_rtx"].items() if state["built"]} == names
    assert set(Artifact.open(out).manifest.files) == {f"onnx-fp32{suffix}" for suffix in suffixes} | {
        f"tensorrt-{name}" for name in names
    }
    for name in names:
        graph = onnx.load(out / "tensorrt" / plan["files"][name]["path"]).graph
        kinds = {node.op_type for node in graph.node}
        assert {given.type.tensor_type.elem_type for given in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
        assert ("QuantizeLinear" in kinds) == name.startswith("int8")
        assert ("TopK" in kinds) == (attention == "joint")
        inputs = {"joint": {"template", "search"}, "cached": {"search", "cache_k", "cache_v"}}[attention]
        assert {given.name for given in graph.input} == ({"template"} if name.endswith("-template") else inputs)
    assert "Shapes" not in json.dumps(plan["tensorrt_11"])  # all are fixed
