"""`edgemim quantize`: what passes is kept, a refusal is exit code 3, and both are on record."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from small_run import stopwatch, timings

from edgemim.cli import main
from edgemim.commands.export import ExportConfig, export_model
from edgemim.commands.quantize import QuantizeConfig, quantize
from edgemim.edge.artifact import Artifact
from edgemim.errors import GateRefused, UserError
from edgemim.export import fidelity
from edgemim.export.quantization_aware import AwareConfig
from edgemim.export.quantize import Int8Config


@pytest.fixture(scope="module")
def exported(small_finetune_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("quantize") / "artifact"
    export_model(ExportConfig(run=small_finetune_run, out=out))
    return out


@pytest.fixture
def folder(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the artifact under runs/, in the current folder."""
    monkeypatch.chdir(tmp_path)
    return shutil.copytree(exported, tmp_path / "runs" / "artifact")


def record(folder: Path) -> dict:
    return json.loads((folder / "quantize" / "run.json").read_text())


def test_the_newest_artifact_is_quantised(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 1)))
    assert main(["quantize", "--targets", "onnx-int8"]) == 0
    captured = capsys.readouterr()
    assert "using the newest export run: runs/artifact" in captured.out
    assert "next: edgemim benchmark runs/artifact" in captured.out
    assert "was judged on 240 images, all there are" in captured.err
    manifest = Artifact.open(folder).manifest
    assert manifest.files["onnx-int8"].precision == "int8"
    written = record(folder)
    assert written["results"]["outcomes"] == {"onnx-int8": "kept"}
    assert written["results"]["quantization"]["onnx-int8"] == manifest.quantization["onnx-int8"]


def test_each_target_is_judged_by_itself(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One target is slower, the other is not: the one stays, the sentence names both, the exit code is 3."""
    pytest.importorskip("openvino", reason="pip install 'edgemim[openvino]'")
    pytest.importorskip("nncf", reason="pip install 'edgemim[openvino]'")
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 3), timings(2, 1)))
    with pytest.raises(GateRefused) as caught:
        quantize(QuantizeConfig(artifact=folder, threads=(1,), calibration=60))
    assert "onnx-int8: slower" in str(caught.value)
    assert "Kept in " in str(caught.value)
    assert "onnx-fp32, openvino-int8 (--force" in str(caught.value)
    assert set(Artifact.open(folder).manifest.files) == {"onnx-fp32", "openvino-int8"}
    written = record(folder)
    assert (written["status"], written["exit_code"]) == ("failed", 3)
    assert written["results"]["outcomes"] == {"onnx-int8": "refused", "openvino-int8": "kept"}


def test_force_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 3)))
    results = quantize(QuantizeConfig(artifact=folder, targets=("onnx-int8",), force=True, images=20))
    assert results["outcomes"] == {"onnx-int8": "forced"}
    assert any("kept by --force in spite of: slower" in line for line in record(folder)["warnings"])


def test_an_undecided_speed_is_a_warning(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 3, foreign=0.4)))
    quantize(QuantizeConfig(artifact=folder, targets=("onnx-int8",), images=20, threads=(1,)))
    assert any("undecided after 3 attempts" in line for line in record(folder)["warnings"])
    # Its run is there, the images are not all: no warning about their number, 20 were asked for.
    assert not any("all there are" in line for line in record(folder)["warnings"])


def test_what_misses_the_gate_is_fine_tuned(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    pytest.importorskip("nncf", reason="pip install 'edgemim[openvino]'")
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 1)))
    before = Artifact.open(folder).manifest
    options = {"targets": ("onnx-int8",), "search": False, "min_cosine": 1.0, "calibration": 8, "images": 20}
    aware = AwareConfig(epochs=0.5, device="cpu", workers=0)
    with pytest.raises(GateRefused, match="cosine of"):
        quantize(QuantizeConfig.model_validate({"artifact": folder, "aware": aware, **options}))
    told = record(folder)["results"]["quantization"]["onnx-int8"]["aware"]
    assert told["epochs"] == 0.5
    assert told["last_loss"] > 0
    assert "epochs (" in capsys.readouterr().out
    assert Artifact.open(folder).manifest == before
    assert not (folder / "quantize" / "aware").exists()


def test_without_its_run(folder: Path) -> None:
    artifact = Artifact.open(folder)
    gone = artifact.manifest.source | {"run": "/nowhere/run"}
    artifact.manifest = artifact.manifest.model_copy(update={"source": gone})
    artifact.save_manifest()
    with pytest.raises(UserError, match=r"its run /nowhere/run is not here.*--run RUN"):
        quantize(QuantizeConfig(artifact=folder))
    with pytest.raises(UserError, match="no run folder"):
        quantize(QuantizeConfig(artifact=folder, run=folder / "none"))


def test_a_report_on_what_is_made_and_on_what_is_there(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """The same gate judges again: nothing is replaced, and what no longer passes is exit code 3."""
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 1), timings(2, 1.25), timings(2, 3)))
    assert main(["quantize", "--targets", "onnx-int8", "--report", "--threads", "1"]) == 0
    made = json.loads((folder / "quantize" / "report.json").read_text())
    assert made["files"]["onnx-int8"]["speed_up"] == {"1": 2.0} and made["machine"]["cpu"]
    assert (folder / "quantize" / "report.png").read_bytes().startswith(b"\x89PNG")
    before = {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    assert main(["quantize", "--report", "--threads", "1", "--images", "40"]) == 0
    again = json.loads((folder / "quantize" / "report.json").read_text())["files"]["onnx-int8"]
    assert again["speed_up"] == {"1": 1.6} and again["images"] == 40
    assert again["recipe"] == made["files"]["onnx-int8"]["recipe"] and again["smoothed"]["norms"] == 5
    assert "1.60× (1 thr.)" in capsys.readouterr().out
    assert main(["quantize", "--report", "--threads", "1", "--images", "40"]) == 3
    told = capsys.readouterr().err
    assert "judged again on 40 images and refused: onnx-int8: slower: 1.50 of FP32's time" in told
    assert {path: path.read_bytes() for path in folder.iterdir() if path.is_file()} == before
    assert record(folder)["results"]["outcomes"] == {"onnx-int8": "kept"}


def test_what_export_passes_on_is_all_that_quantize_takes() -> None:
    """`export --int8` and `quantize` are one code with one set of options; to fine-tune is for the latter alone."""
    own = {"artifact", "run", "overwrite", "report", "aware"}
    assert set(QuantizeConfig.model_fields) - set(Int8Config.model_fields) == own
    assert set(Int8Config.model_fields) <= set(ExportConfig.model_fields)
