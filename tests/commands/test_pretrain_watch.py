"""What pre-training shows between epochs: a figure where there are labels, pictures when they are due."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("torch")

import edgemim

SMALL = {"batch_size": 32, "workers": 0, "warmup_epochs": 0, "log_every": 1, "encoder": "vit_nano"}


def train(data: Path, out: Path, **changes: object) -> tuple[list[dict], list[str]]:
    """Lines of metrics.jsonl and the names of the pictures."""
    edgemim.pretrain(edgemim.PretrainConfig.model_validate({**SMALL, "data": data, "out": out, **changes}))
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return lines, sorted(path.name for path in (out / "pictures").glob("*.png"))


def test_figure_and_picture_when_due_and_after_the_last_step(photos: Path, tmp_path: Path) -> None:
    lines, pictures = train(photos, tmp_path / "run", epochs=5, knn_every=2, picture_every=3)
    steps = max(line["step"] for line in lines)
    found = {line["step"]: line["knn_top1"] for line in lines if "knn_top1" in line}
    assert list(found) == [2 * steps // 5, 4 * steps // 5, steps]
    # A tenth of each class asks the rest; four photos are told apart by colour alone, chance is 25.
    assert found[steps] > 40
    assert pictures == [f"reconstruction-{step:09d}.png" for step in (3 * steps // 5, steps)]
    width, height = Image.open(tmp_path / "run" / "pictures" / pictures[-1]).size
    assert width == 8 * (128 + 2)
    assert height % (128 + 2) == 0


def test_no_labels_no_figure_and_0_is_never(photos: Path, tmp_path: Path) -> None:
    flat = photos / "coffee"
    lines, pictures = train(flat, tmp_path / "run", epochs=1, batch_size=8, picture_every=0, knn_every=1)
    assert not [line for line in lines if "knn_top1" in line]
    assert pictures == []
