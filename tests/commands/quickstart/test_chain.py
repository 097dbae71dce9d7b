import json
from pathlib import Path

import pytest

from edgemim.commands.quickstart import QuickstartConfig, chain, quickstart
from edgemim.commands.quickstart.config import ARMS, PRETRAINED
from edgemim.edge.artifact import Artifact
from edgemim.errors import GateRefused, UserError
from edgemim.run import read_record


def stamps(root: Path) -> dict[str, int]:
    return {str(path.relative_to(root)): path.stat().st_mtime_ns for path in root.glob("*/*/model/model.safetensors")}


def test_the_chain_ends_in_an_artifact_with_parity_int8_latency_and_a_report(started):
    out = started.config.out
    artifact = Artifact.open(out / "artifact")
    assert artifact.manifest.parity["relative_error"] <= artifact.manifest.parity["tolerance"]
    assert artifact.manifest.parity["images"] == 14 * 4, "parity is measured on the test crops"
    assert set(artifact.manifest.files) == {"onnx-fp32", "onnx-int8"}
    assert json.loads((out / "artifact" / "benchmark" / "benchmark.json").read_text())["rows"]
    assert started.html.startswith("<!doctype html>")
    record = read_record(out)
    assert (record["status"], record["verb"]) == ("done", "quickstart")
    assert record["results"] == json.loads(json.dumps(started.results))


def test_every_arm_is_trained_and_measured_on_the_test_crops(started):
    assert set(started.results["test_top1"]) == set(ARMS)
    assert set(started.results["learning_rates"].values()) <= set(started.config.finetune_lrs)
    assert set(started.results["pretrain_minutes"]) == {f"{arm}-0" for arm in PRETRAINED}
    for arm in ARMS:
        results = read_record(started.config.out / "finetune" / f"{arm}-0")["results"]
        assert results["evaluated_images"] == 14 * 4
        assert started.results["test_top1"][arm] == [results["top1"]]
    for arm, tried in started.results["held_out_top1"].items():
        assert tried[f"{started.results['learning_rates'][arm]:g}"] == max(tried.values())
        chosen_on = read_record(started.config.out / "choose" / f"{arm}-0.001")["results"]
        assert chosen_on["held_out"].startswith("30%")
    assert started.results["teacher_knn_top1"] > 3 * 100 / 14
    assert "image resized from 32 to" in started.results["teacher"]


def test_started_again_it_trains_nothing_twice(started, monkeypatch, capsys):
    before = stamps(started.config.out)
    assert len(before) == 3 + 8 + 4
    # What comes after the trainings was shown to work; here it must only not be reached by new weights.
    for name in ("measure_features", "deploy"):
        monkeypatch.setattr(chain, name, lambda outcome: None)
    monkeypatch.setattr(chain, "summary", lambda outcome: {"test_top1": {arm: outcome.accuracies(arm) for arm in ARMS}})
    monkeypatch.setattr(chain, "write_page", lambda outcome, path: path)
    record = (started.config.out / "run.json").read_text()
    try:
        again = quickstart(started.config.model_copy(update={"processes": 1}))
    finally:
        (started.config.out / "run.json").write_text(record)
    assert again["test_top1"] == started.results["test_top1"]
    assert stamps(started.config.out) == before
    assert "8 of 8 trainings are there already" in capsys.readouterr().out


def test_other_settings_are_refused_with_what_differs(started):
    other = started.config.model_copy(update={"pretrain_lr": 3e-3})
    with pytest.raises(UserError, match=r"pretrain_lr: 0.001 -> 0.003.*--overwrite"):
        quickstart(other)
    assert (started.config.out / "report.html").exists()


def test_a_strange_folder_is_left_alone(tmp_path: Path):
    (tmp_path / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError):
            quickstart(QuickstartConfig(out=tmp_path, overwrite=overwrite))
        assert (tmp_path / "thesis.txt").read_text() == "mine"
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "run.json").write_text('{"verb": "pretrain", "config": {}}')
    with pytest.raises(UserError, match="holds a run of `edgemim pretrain`"):
        quickstart(QuickstartConfig(out=tmp_path / "run"))


def test_a_refused_int8_is_a_result_and_not_an_end(started, monkeypatch):
    def refuse(config: object) -> None:
        raise GateRefused("INT8 refused on 56 images: onnx-int8: slower")

    monkeypatch.setattr(chain, "export_model", lambda config: None)
    monkeypatch.setattr(chain, "quantize", refuse)
    monkeypatch.setattr(chain, "benchmark", lambda config: started.outcome.latency)
    chain.deploy(started.outcome)
    assert started.outcome.refusal == "INT8 refused on 56 images: onnx-int8: slower"
    assert started.outcome.int8["quantization"]
    started.outcome.refusal = ""
