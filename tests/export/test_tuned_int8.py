"""INT8 that misses the gate is fine-tuned and judged anew: on a model that post-training INT8 ruins it pays."""

from __future__ import annotations

from pathlib import Path

import pytest
from attention_outliers import ruin_attention
from small_run import stopwatch, timings

pytest.importorskip("torch")
pytest.importorskip("nncf", reason="pip install 'edgemim[openvino]'")

from edgemim.commands.export import ExportConfig, export_model
from edgemim.edge.artifact import Artifact, sha256_of
from edgemim.errors import UserError
from edgemim.export import fidelity
from edgemim.export.quantization_aware import AwareConfig
from edgemim.export.quantize import Int8Config, Verdict, quantize_artifact
from edgemim.export.tuned_int8 import check_aware, needs_tuning, told_of_tuning, tune_and_judge
from edgemim.tasks import load_task

BUDGET = Int8Config(
    targets=("openvino-int8",), search=False, threads=(1,), calibration=64, min_agreement=97, min_cosine=0.95
)


def test_fine_tuning_mends_what_post_training_int8_ruins(trained_run: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(fidelity, "measure", stopwatch(timings(2, 1)))
    task = load_task(ruin_attention(trained_run, tmp_path / "ruined"))
    export_model(ExportConfig(run=tmp_path / "ruined", out=tmp_path / "artifact"))
    artifact = Artifact.open(tmp_path / "artifact")
    before = sha256_of(artifact.file())
    [refused] = quantize_artifact(artifact, task, BUDGET)
    assert refused.outcome == "refused" and needs_tuning(refused)
    aware = AwareConfig(epochs=12, lr=1e-3, device="cpu", workers=0)
    [kept] = tune_and_judge(artifact, task, BUDGET, aware, [refused], tmp_path / "aware")
    assert (kept.outcome, kept.reasons) == ("kept", ())
    assert kept.report["agreement"] > refused.report["agreement"] + 2
    opened = Artifact.open(artifact.folder)
    report = opened.manifest.quantization["openvino-int8"]
    assert report["aware"]["after_training"]["agreement"] == refused.report["agreement"]
    assert (report["aware"]["epochs"], report["aware"]["lr"], report["aware"]["seed"]) == (12, 1e-3, 0)
    assert report["recipe"].startswith("quantization-aware fine-tuning, then NNCF")
    assert 0 < min(report["block_cosine"].values()) <= 1
    assert sha256_of(opened.file()) == before
    assert f"to {report['agreement']:.2f} %" in told_of_tuning(report["aware"], report)
    assert not list(artifact.folder.glob(".trial-*"))


def verdict(outcome: str, *reasons: str, **report) -> Verdict:
    return Verdict("openvino-int8", outcome, reasons, report)  # pyright: ignore[reportArgumentType]


def test_what_is_tuned() -> None:
    assert needs_tuning(verdict("refused", "agreement of 90 %"))
    assert needs_tuning(verdict("forced", "agreement of 90 %", "slower: 1.2"))
    assert needs_tuning(verdict("refused", "slower: 1.2", float_layers=["blocks.0"]))
    assert not needs_tuning(verdict("refused", "slower: 1.2", float_layers=[]))
    assert not needs_tuning(verdict("kept", float_layers=["blocks.0"]))
    assert not needs_tuning(verdict("refused", "agreement of 90 %", calibration_faults=["contrast"]))


def test_without_epochs_or_need_nothing_is_done(artifact, task, tmp_path: Path) -> None:
    bad, slow = verdict("refused", "agreement of 90 %"), verdict("refused", "slower: 1.2")
    assert tune_and_judge(artifact, task, BUDGET, AwareConfig(), [bad], tmp_path / "aware") == [bad]
    assert tune_and_judge(artifact, task, BUDGET, AwareConfig(epochs=1), [slow], tmp_path / "aware") == [slow]


def test_a_tracker_is_refused_before_any_work(task) -> None:
    from edgemim.tasks.classification import ClassificationTask

    bare = ClassificationTask(task.model, task.labels, task.preprocessing, None, architecture=task.architecture)
    check_aware(bare, AwareConfig())
    with pytest.raises(UserError, match="give --data DIR"):
        check_aware(bare, AwareConfig(epochs=1))
