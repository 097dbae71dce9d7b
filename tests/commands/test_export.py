"""`edgemim export`: a checked artifact or none, and one sentence with the right exit code."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from small_run import stopwatch, timings

from edgemim.cli import main
from edgemim.commands import export
from edgemim.commands.export import ExportConfig, export_model
from edgemim.edge.artifact import Artifact, sha256_of
from edgemim.edge.runtime import open_session
from edgemim.errors import GateRefused, MissingLibrary, UserError
from edgemim.export import fidelity, reduced


@pytest.fixture
def run(small_finetune_run: Path, tmp_path: Path) -> Path:
    """A copy of the run under runs/, as the newest of two."""
    older = tmp_path / "runs" / "older"
    shutil.copytree(small_finetune_run, older)
    os.utime(older / "run.json", (1, 1))
    return shutil.copytree(small_finetune_run, tmp_path / "runs" / "newest")


def test_a_bare_command_exports_the_newest_run(run: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.chdir(run.parents[1])
    assert main(["export"]) == 0
    printed = capsys.readouterr().out
    assert "using the newest finetune run: runs/newest" in printed
    assert "next: edgemim benchmark runs/newest/artifact" in printed
    assert not (run.parent / "older" / "artifact").exists()
    artifact = Artifact.open(run / "artifact")
    manifest = artifact.manifest
    assert set(manifest.files) == {"onnx-fp32"}
    assert manifest.input_shape == (None, 3, 64, 64)
    assert manifest.labels == ("astronaut", "chelsea", "coffee", "rocket")
    assert manifest.source["checkpoint_sha256"] == sha256_of(run / "model" / "model.safetensors")
    assert Path(manifest.source["run"]) == run
    parity = manifest.parity
    assert parity["images"] == 64
    assert parity["weights_identical"] == parity["weights"] > 20
    assert parity["onnxruntime_max_abs_error"] < 1e-4
    assert parity["relative_error"] <= parity["max_abs_error"] <= parity["tolerance"]
    record = json.loads((run / "artifact" / "run.json").read_text())
    assert (record["verb"], record["status"]) == ("export", "done")
    assert record["results"]["parity"] == parity
    for batch in (1, 5):
        images = np.zeros((batch, 3, 64, 64), np.float32)
        assert open_session(artifact).run({"images": images})["logits"].shape == (batch, 4)
    assert {path.name for path in run.iterdir()} == {"model", "run.json", "artifact"}
    # a second time: nothing is lost unasked
    assert main(["export", "runs/newest"]) == 2


def test_one_weight_moved_by_one_percent_leaves_no_artifact(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An older artifact stays as it was."""
    (run / "artifact").mkdir()
    (run / "artifact" / "manifest.json").write_text("older")
    honest = export.export_onnx

    def tampering(module, example, path: Path, **options) -> None:
        honest(module, example, path, **options)
        model = onnx.load(path)
        tensor = next(tensor for tensor in model.graph.initializer if tensor.name == "head.weight")
        array = numpy_helper.to_array(tensor).copy()
        array[0, 0] *= np.float32(1.01)
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        onnx.save(model, path)

    monkeypatch.setattr(export, "export_onnx", tampering)
    with pytest.raises(GateRefused, match=r"1 of 192 values of weight head\.weight .*; no artifact was written"):
        export_model(ExportConfig(run=run, overwrite=True))
    assert {path.name for path in run.iterdir()} == {"model", "run.json", "artifact"}
    assert [path.read_text() for path in (run / "artifact").iterdir()] == ["older"]


def test_fixed_batch_and_int8_in_one_go(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 1)))
    arguments = ["--fixed-batch", "3", "--int8", "--targets", "onnx-int8", "--images", "40", "--isa", "portable"]
    assert main(["export", str(run), "--onnx", *arguments]) == 0
    artifact = Artifact.open(run / "artifact")
    assert artifact.manifest.input_shape == (3, 3, 64, 64)
    assert artifact.manifest.files["onnx-int8"].isa == "portable"
    assert artifact.manifest.quantization["onnx-int8"]["images"] == 40
    images = np.zeros((3, 3, 64, 64), np.float32)
    assert open_session(artifact, "onnx-int8").run({"images": images})["logits"].shape == (3, 4)
    with pytest.raises(UserError):
        open_session(artifact).run({"images": images[:1]})


def test_a_refused_int8_exits_3_and_keeps_fp32(run: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 3)))
    assert main(["export", str(run), "--int8", "--targets", "onnx-int8", "--images", "40"]) == 3
    captured = capsys.readouterr()
    assert "edgemim: INT8 refused on 40 images: onnx-int8: slower: 1.50 of FP32's time" in captured.err
    assert set(Artifact.open(run / "artifact").manifest.files) == {"onnx-fp32"}
    assert not list((run / "artifact").glob("*int8*"))


def test_mistakes_are_one_sentence(run: Path, tmp_path: Path, capsys) -> None:
    assert main(["export", str(run), "--no-onnx"]) == 2
    assert main(["export", str(tmp_path / "nothing")]) == 2
    assert main(["export", str(run), "--max-drop", "2", "--force"]) == 2
    assert main(["export", str(run), "--out", str(run), "--overwrite"]) == 2  # a run is no artifact: it is not emptied
    assert (run / "model" / "model.safetensors").exists()
    (run / "model" / "model.json").write_text(json.dumps({"kind": "decoder"}))
    assert main(["export", str(run)]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 5
    assert "--max-drop, --force would have no effect without --int8" in lines[2]
    assert "holds a decoder, not a fine-tuned model; run `edgemim finetune`" in lines[-1]
    assert not (run / "artifact").exists()


def test_openvino_is_missing(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from edgemim.export import openvino

    monkeypatch.setattr(openvino.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingLibrary, match="needs openvino: pip install"):
        export_model(ExportConfig(run=run, openvino=True))
    assert not (run / "artifact").exists()


def test_reduced_precision_is_judged_by_tolerances_of_its_own(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("openvino", reason="OpenVINO: pip install 'edgemim[openvino]'")
    monkeypatch.setattr(reduced, "cpu_flags", lambda: ("avx512_bf16",))
    config = ExportConfig(run=run, openvino=True, fp16=True, bf16=True, parity_images=8)
    export_model(config)
    manifest = Artifact.open(run / "artifact").manifest
    assert {"onnx-fp16", "openvino-fp16", "openvino-bf16"} < set(manifest.files)
    parity = manifest.parity
    assert parity["relative_error"] < 1e-4 < parity["fp16_tolerance"]
    assert 1e-7 < parity["onnx-fp16_max_abs_error"] < 0.02
    assert "openvino-bf16_cosine" in parity
    # its own tolerance refuses it, FP32's does not
    with pytest.raises(GateRefused, match="on onnx-fp16 the exported model is off"):
        export_model(config.model_copy(update={"out": run / "strict", "fp16_tolerance": 1e-9}))
    assert not (run / "strict").exists()
