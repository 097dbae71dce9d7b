"""The whole chain on real photos with a tiny model: each verb as a Python function, in under two minutes on a CPU."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import edgemim
from edgemim.edge.images import load_image
from edgemim.errors import GateRefused


@pytest.fixture(scope="module")
def journey(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A pre-training run, a fine-tuning run and an artifact, made once for all tests here."""
    pytest.importorskip("torch")
    root = tmp_path_factory.mktemp("journey")
    small = {"encoder": "vit_nano", "batch_size": 32, "workers": 0, "warmup_epochs": 1}
    edgemim.pretrain(
        edgemim.PretrainConfig.model_validate(
            {**small, "data": photos, "epochs": 6, "base_lr": 8e-3, "out": root / "pretrain", "knn_every": 3}
        )
    )
    edgemim.finetune(
        edgemim.FinetuneConfig.model_validate(
            {**small, "data": photos, "epochs": 30, "base_lr": 1.6e-2, "init": str(root / "pretrain"), "val_share": 0.2}
            | {"out": root / "finetune", "transform": {"rand_augment": "", "crop_scale": (0.5, 1.0)}}
        )
    )
    edgemim.export_model(edgemim.ExportConfig(run=root / "finetune", out=root / "artifact"))
    return {"pretrain": root / "pretrain", "finetune": root / "finetune", "artifact": root / "artifact", "data": photos}


def results(run: Path) -> dict:
    """What a verb wrote into its run.json."""
    record = json.loads((run / "run.json").read_text())
    assert record["status"] == "done"
    return record["results"]


def test_pretraining_learns_and_shows_it(journey: dict[str, Path]) -> None:
    lines = [json.loads(line) for line in (journey["pretrain"] / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < losses[0]
    assert list((journey["pretrain"] / "pictures").glob("reconstruction-*.png"))
    assert results(journey["pretrain"])["knn_top1"] > 25  # chance for four classes
    assert (journey["pretrain"] / "config.yaml").exists()


def test_probe_and_evaluate_agree_with_the_run(journey: dict[str, Path]) -> None:
    probed = edgemim.probe(edgemim.ProbeConfig(run=journey["pretrain"], data=journey["data"], blocks=(1, 2), k=5))
    assert 25 < probed["knn_top1_block2"] <= 100
    evaluated = edgemim.evaluate(edgemim.EvaluateConfig(run=journey["finetune"]))
    trained = results(journey["finetune"])
    assert evaluated["top1"] == pytest.approx(trained["top1"], abs=1e-6)
    assert evaluated["top1"] > 60  # four photos that differ in colour alone would give as much
    assert np.asarray(trained["confusion"]).sum() == trained["evaluated_images"]


def test_the_artifact_stands_alone(journey: dict[str, Path]) -> None:
    artifact = edgemim.Artifact.open(journey["artifact"])
    session = edgemim.open_session(artifact)
    right = total = 0
    for label, name in enumerate(artifact.manifest.labels):
        for path in sorted((journey["data"] / name).iterdir())[:10]:
            image = artifact.manifest.preprocessing(load_image(path))
            logits = session.run({"images": image[None]})["logits"]
            right += int(logits.argmax() == label)
            total += 1
    assert right / total > 0.6


def test_int8_is_judged_and_the_verdict_recorded(journey: dict[str, Path]) -> None:
    refused = ""
    try:
        edgemim.quantize(edgemim.QuantizeConfig(artifact=journey["artifact"]))
    except GateRefused as refusal:
        # A model this small may well be slower in INT8: then the gate says so and FP32 stays whole.
        refused = str(refusal)
        assert any(word in refused for word in ("slower", "agreement", "cosine", "drop"))
    manifest = edgemim.Artifact.open(journey["artifact"]).manifest
    assert "onnx-fp32" in manifest.files
    for key in set(manifest.files) - {"onnx-fp32"}:
        assert manifest.quantization[key]["images"] > 0
    assert refused or len(manifest.files) > 1


def test_benchmark_ends_the_chain(journey: dict[str, Path], tmp_path: Path) -> None:
    config = edgemim.BenchmarkConfig.model_validate(
        {"artifacts": [journey["artifact"]], "out": tmp_path / "bench", "seconds": 0.1, "batch": [1, 4]}
    )
    edgemim.benchmark(config)
    rows = results(tmp_path / "bench")["rows"]
    timed = [row for row in rows if row.get("latency_p50_ms")]
    assert {row["runtime"] for row in timed} >= {"onnxruntime", "pytorch"}
    assert all(0 < row["latency_p50_ms"] <= row["latency_p99_ms"] for row in timed)
