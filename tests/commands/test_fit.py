"""What every fine-tuning shares: when it is measured, and options that a task would ignore."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("torch")

import edgemim
from edgemim.commands.fit import refuse_idle
from edgemim.errors import UserError

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
