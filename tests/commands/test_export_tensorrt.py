"""`edgemim export --tensorrt`: judged files, a plan, and exit codes that say what was missing."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from edgemim.cli import main
from edgemim.commands import export_tensorrt
from edgemim.edge.artifact import Artifact, sha256_of


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
    # The artifact opens as before: these files are for another machine, and no runtime here is offered them.
    assert set(Artifact.open(run / "artifact").manifest.files) == {"onnx-fp32"}
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
    assert sorted(path.name for path in folder.iterdir()) == ["model-fp16.onnx", "model-fp32.onnx", "trt_plan.json"]
    assert "not kept for TensorRT" in capsys.readouterr().err
