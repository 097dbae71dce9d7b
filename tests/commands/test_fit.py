"""What every fine-tuning shares: when it is measured, which weights it hands on, and options that a task would ignore."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

import edgemim  # noqa: E402
from edgemim.commands.fit import refuse_idle  # noqa: E402
from edgemim.errors import SavedOnSignal, UserError  # noqa: E402
from edgemim.models.weights import MODEL_FILE, read_tensors  # noqa: E402

torch.set_num_threads(1)

SMALL = {"batch_size": 32, "workers": 0, "warmup_epochs": 0, "log_every": 1, "init": "scratch", "encoder": "vit_nano"}


def train(photos: Path, out: Path, **changes: object) -> list[dict]:
    """Lines of metrics.jsonl of a small run: 4 steps an epoch."""
    edgemim.finetune(edgemim.FinetuneConfig.model_validate({**SMALL, "data": photos, "out": out, **changes}))
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_held_out_images_are_looked_at_every_so_many_epochs(photos: Path, tmp_path: Path) -> None:
    lines = train(photos, tmp_path / "run", epochs=5, evaluate_every=2)
    per_epoch = max(line["step"] for line in lines) // 5
    assert [line["step"] for line in lines if "val_top1" in line] == [2 * per_epoch, 4 * per_epoch]
    assert not [line for line in train(photos, tmp_path / "other", epochs=2, evaluate_every=0) if "val_top1" in line]


def test_an_option_without_effect_is_refused_by_name() -> None:
    config = edgemim.FinetuneConfig.model_validate({"crop_pct": 0.9, "weights": "file"})
    with pytest.raises(UserError, match="'weights', 'crop_pct' would have no effect with --task tracking"):
        refuse_idle(config, "tracking", ("weights", "crop_pct", "val"))
    refuse_idle(config, "tracking", ("val", "encoder"))


FAST = {"base_lr": 3e-2, "evaluate_every": 1, "ema_decay": 0.8}


def results(run: Path) -> dict:
    return json.loads((run / "run.json").read_text())["results"]


def test_the_best_weights_are_handed_on_and_the_record_says_which(photos: Path, tmp_path: Path) -> None:
    lines = train(photos, tmp_path / "run", epochs=12, patience=2, **FAST)
    seen = [(line["step"], line["val_top1"]) for line in lines if "val_top1" in line]
    found = results(tmp_path / "run")
    best = found["best"]
    top = max(value for _, value in seen)
    assert best["figure"] == pytest.approx(top)
    assert best["step"] == next(step for step, value in seen if value == top)  # of equals the first
    assert best["evaluations"] == len(seen)
    assert best["stopped_early"] is (found["steps"] < 12 * found["steps"] / best["epochs_trained"])
    if best["stopped_early"]:
        assert [value <= top for _, value in seen[-2:]] == [True, True]
        assert best["epochs_trained"] == best["epoch"] + 2
    # What was measured then is measured again of what is handed on, here and by the verb that evaluates.
    assert found["top1"] == pytest.approx(top)
    again = edgemim.evaluate(edgemim.EvaluateConfig(run=tmp_path / "run"))
    assert again["top1"] == pytest.approx(top)


def test_the_best_without_patience_trains_to_the_end_as_without(photos: Path, tmp_path: Path) -> None:
    settings = {**FAST, "epochs": 4}
    plain = train(photos, tmp_path / "plain", **settings)
    kept = train(photos, tmp_path / "kept", keep_best=True, **settings)
    losses = [[line["loss"] for line in lines if "loss" in line] for lines in (plain, kept)]
    assert losses[0] == losses[1]
    # The last step is measured, too: it may be the best.
    assert len([line for line in kept if "val_top1" in line]) == 4
    assert not results(tmp_path / "kept")["best"]["stopped_early"]
    assert results(tmp_path / "kept")["top1"] >= results(tmp_path / "plain")["top1"]


@pytest.mark.parametrize("optimizer", [{}, {"optimizer": "sgd", "base_lr": 0.4}], ids=["adamw", "sgd"])
def test_patience_is_exact_under_a_signal_in_an_evaluation(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, optimizer: dict
) -> None:
    from edgemim.commands import finetune as module

    settings = {"epochs": 8, "patience": 3, **FAST, **optimizer}
    train(photos, tmp_path / "whole", **settings)
    calls, real = [0], module.evaluate_classifier

    def interrupted(*given: object) -> object:
        calls[0] += 1
        if calls[0] in (2, 4):
            os.kill(os.getpid(), signal.SIGTERM)
        return real(*given)  # pyright: ignore[reportArgumentType]

    with monkeypatch.context() as patch:
        patch.setattr(module, "evaluate_classifier", interrupted)
        for resume in (False, True):
            with pytest.raises(SavedOnSignal):
                train(photos, tmp_path / "parts", resume=resume, **settings)
    assert json.loads((tmp_path / "parts" / "run.json").read_text())["status"] == "saved"
    train(photos, tmp_path / "parts", resume=True, **settings)
    whole, parts = (results(tmp_path / name) for name in ("whole", "parts"))
    assert parts["best"] == whole["best"]
    files = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in ("whole", "parts")]
    assert files[0] == files[1]


def test_what_the_average_gives_is_measured_and_handed_on(photos: Path, tmp_path: Path) -> None:
    """Without choosing: the last figure of the log belongs to the average of that step, as does the model."""
    settings = {"epochs": 3, "base_lr": 3e-2, "evaluate_every": 1}
    train(photos, tmp_path / "plain", **settings)
    train(photos, tmp_path / "mean", ema_decay=0.9, **settings)
    plain, mean = (read_tensors(tmp_path / name / "model" / MODEL_FILE) for name in ("plain", "mean"))
    assert not torch.equal(plain["head.weight"], mean["head.weight"])
    checkpoint = read_tensors(sorted((tmp_path / "mean" / "checkpoints").glob("step-*"))[-1] / "ema.safetensors")
    assert torch.equal(checkpoint["head.weight"], mean["head.weight"])


def test_an_average_longer_than_the_run_is_warned_of(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train(photos, tmp_path / "run", epochs=1, ema_decay=0.9999, evaluate_every=0)
    warned = [line for line in capsys.readouterr().err.splitlines() if "ema_decay 0.9999" in line]
    assert len(warned) == 1
    assert "is still 100% the weights of the first step" in warned[0]


def test_sgd_brings_its_own_settings_and_trains(photos: Path, tmp_path: Path) -> None:
    config = edgemim.FinetuneConfig(optimizer="sgd")
    assert (config.base_lr, config.weight_decay, config.clip_grad) == (0.015, 0.0, 1.0)
    assert edgemim.FinetuneConfig.model_validate({"optimizer": "sgd", "base_lr": 0.1}).base_lr == 0.1
    segmentation = edgemim.FinetuneConfig.model_validate({"optimizer": "sgd", "task": "segmentation"})
    assert (segmentation.base_lr, segmentation.batch_size) == (0.015, 16)
    lines = train(photos, tmp_path / "run", epochs=12, optimizer="sgd", base_lr=0.4, mixing={"mixup": 0.0})
    losses = [line["loss"] for line in lines if "loss" in line]
    assert sum(losses[-3:]) < 0.8 * sum(losses[:3])
    assert results(tmp_path / "run")["top1"] > 40  # chance is 25


@pytest.mark.parametrize("option", [{"keep_best": True}, {"patience": 3}])
def test_choosing_needs_evaluations(option: dict) -> None:
    with pytest.raises(ValueError, match=f"'{next(iter(option))}' chooses among evaluations.*give --evaluate-every 1"):
        edgemim.FinetuneConfig.model_validate({"evaluate_every": 0, **option})
