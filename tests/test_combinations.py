"""The published combinations of methods are recipes, not code: each takes real steps from the command line, made small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgemim.cli import main

RECIPES = Path(__file__).parent.parent / "configs" / "pretrain"
# Twelve blocks, as the recipes name them, of little width on small images.
SMALL = "--encoder vit_micro --encoder.depth 12 --encoder.width 24 --encoder.patch-size 16 --batch-size 30".split()
SHORT = (
    "--epochs 0.75 --warmup-epochs 0 --base-lr 0.02 --workers 0 --log-every 1 --picture-every 0 --knn-every 0".split()
)
DECODER = "--method.decoder.width 24 --method.decoder.depth 1 --method.decoder.heads 3".split()


@pytest.fixture(scope="module")
def teacher(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of MAE with its decoder: a teacher of every kind."""
    pytest.importorskip("torch")
    out = tmp_path_factory.mktemp("teacher") / "run"
    assert main(["pretrain", "--data", str(photos), "--out", str(out), "--method", "mae", *SMALL, *SHORT]) == 0
    return out


@pytest.mark.parametrize(
    ("recipe", "decoder", "taught", "losses"),
    [
        ("deepmim_clip_vit_base_in1k", DECODER, True, {"block_6", "block_8", "block_10", "block_12"}),
        ("deepmim_hybrid_vit_base_in1k", DECODER, True, {"block_6", "block_8", "block_10", "block_12"}),
        ("mff_pixmim_vit_tiny_in1k", DECODER, False, {"pixel"}),
        ("d2_mae_vit_tiny_in1k", DECODER, True, {"pixel", "attention"}),
        (
            "composed_deep_attention_vit_tiny",
            ["--method.branches.0.weight", "1"],
            True,
            {"pixel_6", "pixel_8", "attention"},
        ),
    ],
)
def test_a_combination_takes_real_steps(
    recipe: str, decoder: list[str], taught: bool, losses: set[str], teacher: Path, photos: Path, tmp_path: Path
) -> None:
    words = ["--config", str(RECIPES / f"{recipe}.yaml"), "--data", str(photos), "--out", str(tmp_path / "run")]
    words += ["--teacher", "checkpoint", "--teacher.path", str(teacher)] if taught else []
    assert main(["pretrain", *words, *SMALL, *SHORT, *decoder]) == 0
    steps = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(steps) == 3
    assert {key.removeprefix("loss_") for key in steps[0] if key.startswith("loss_")} == losses
    assert steps[0]["loss"] != steps[-1]["loss"]
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert (record["status"], record["results"]["nonfinite_steps"]) == ("done", 0)
    assert ("teacher" in record["results"]) == taught
