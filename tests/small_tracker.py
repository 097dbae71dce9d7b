"""A small tracking run on real photos, trained for some steps, for tests."""

from __future__ import annotations

from pathlib import Path

from tracking_sets import write_folder

import edgemim

_TRACKER = {"template_size": 32, "search_size": 64, "head_width": 16}


def small_tracker(root: Path, attention: str = "joint", matching_blocks: tuple[int, ...] = ()) -> Path:
    """Train and return the run's folder; its pictures lie beside it."""
    write_folder(root / "walks")
    tracker = {**_TRACKER, "attention": attention, "matching_blocks": matching_blocks}
    task = {"name": "tracking", "tracker": tracker, "pairs": {"pairs_per_epoch": 48, "held_pairs": 6}}
    settings = {"task": task, "init": "scratch", "encoder": "vit_nano", "epochs": 2, "batch_size": 16}
    settings |= {"data": root / "walks", "workers": 0, "device": "cpu", "evaluate_every": 0, "base_lr": 0.02}
    edgemim.finetune(edgemim.FinetuneConfig.model_validate(settings | {"out": root / "run"}))
    return root / "run"
