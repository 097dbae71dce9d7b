"""The whole verb on real photos: figures, pictures, exact resume, the published optimizer, and mistakes before a step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tracking_sets import write_folder, write_masks

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

import edgemim  # noqa: E402
from edgemim.cli import main  # noqa: E402
from edgemim.commands.tracking.train import build_tracker_optimizer, measure  # noqa: E402
from edgemim.config import parse, to_yaml  # noqa: E402
from edgemim.data.tracking.pairs import PairBatch  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.models.one_stream import OneStreamTracker  # noqa: E402
from edgemim.models.sizes import VitConfig  # noqa: E402
from edgemim.models.tracker_sizes import TrackerForm  # noqa: E402
from edgemim.models.weights import read_tensors  # noqa: E402
from edgemim.tasks import load_task  # noqa: E402
from edgemim.tasks.tracking import TrackingConfig, TrackingTask, tracker_preprocessing  # noqa: E402

torch.set_num_threads(1)

PAIRS = {"sources": [{"root": "walks"}, {"root": "masks", "ratio": 2}], "pairs_per_epoch": 32, "held_pairs": 12}
TASK = {"name": "tracking", "tracker": {"template_size": 32, "search_size": 64, "head_width": 16}, "pairs": PAIRS}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("sets")
    write_folder(root / "walks")
    write_masks(root / "masks")
    return root


def config_of(data: Path, **changes: Any) -> edgemim.FinetuneConfig:
    settings = {"task": TASK, "init": "scratch", "encoder": "vit_nano", "epochs": 2, "batch_size": 8, "data": data}
    settings |= {"evaluate_every": 1, "workers": 0, "device": "cpu"}
    return edgemim.FinetuneConfig.model_validate(settings | changes)


def test_a_run_leaves_figures_pictures_and_a_tracker(data: Path, tmp_path: Path, capsys) -> None:
    edgemim.finetune(config_of(data, out=tmp_path / "run"))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    results = record["results"]
    assert record["status"] == "done" and results["evaluated_pairs"] == 12
    assert 0 <= results["mean_iou"] <= 100 and 0 < results["unmoved_mean_iou"] < 60
    counts = results["parameter_counts"]
    assert counts["tracker"] == counts["backbone"] + counts["head"] and len(results["sources"]) == 2
    for name in ("held-out-pairs.png", "training-pairs.png"):
        with Image.open(tmp_path / "run" / "pictures" / name) as picture:
            assert picture.width > 1000
    task = load_task(tmp_path / "run")
    assert isinstance(task, TrackingTask) and task.model.size.search_size == 64
    metrics = (tmp_path / "run" / "metrics.jsonl").read_text()
    assert "val_mean_iou" in metrics and "train_mean_iou" in metrics
    assert "parameters: tracker" in capsys.readouterr().out


def test_stopped_and_resumed_is_the_same_run(data: Path, tmp_path: Path) -> None:
    options = {"drop_path": 0.1, "ema_decay": 0.9}
    edgemim.finetune(config_of(data, out=tmp_path / "whole", **options))
    edgemim.finetune(config_of(data, out=tmp_path / "parts", **options, checkpoint_minutes=0, keep_checkpoints=50))
    for path in sorted((tmp_path / "parts" / "checkpoints").glob("step-*"))[3:]:
        path.rename(path.with_name(path.name + ".gone"))
    edgemim.finetune(config_of(data, out=tmp_path / "parts", **options, resume=True, workers=1))
    whole, parts = (read_tensors(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)


def test_a_frozen_backbone_stays_as_it_was(data: Path, tmp_path: Path) -> None:
    edgemim.finetune(config_of(data, out=tmp_path / "first", epochs=1, evaluate_every=0))
    task = {**TASK, "backbone_rate": 0, "tracker": {**TASK["tracker"], "matching_blocks": (2,), "attention": "cached"}}
    init = str(tmp_path / "first")
    edgemim.finetune(config_of(data, out=tmp_path / "second", task=task, init=init, ema_decay=0.9))
    first, second = (read_tensors(tmp_path / name / "model" / "model.safetensors") for name in ("first", "second"))
    backbone = [key for key in first if not key.startswith("head.")]
    assert len(backbone) > 20 and all(torch.equal(first[key], second[key]) for key in backbone)
    assert second["head.score.0.0.weight"].shape[1] == first["head.score.0.0.weight"].shape[1] + 16
    assert not torch.equal(first["head.score.1.0.weight"], second["head.score.1.0.weight"])


@pytest.mark.timeout(300)
def test_two_ranks_train_one_tracker_and_do_so_again(data: Path, tmp_path: Path) -> None:
    settings = config_of(data).model_copy(update={"evaluate_every": 0.0})
    (tmp_path / "settings.yaml").write_text(to_yaml(settings))
    ranks = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "edgemim"]
    for name in ("once", "again"):
        words = ["finetune", "--config", str(tmp_path / "settings.yaml"), "--out", str(tmp_path / name)]
        ended = subprocess.run(
            [*ranks, *words], capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        assert ended.returncode == 0, ended.stderr[-2000:]
    record = json.loads((tmp_path / "once" / "run.json").read_text())
    assert record["status"] == "done" and record["results"]["evaluated_pairs"] == 12
    once, again = (read_tensors(tmp_path / name / "model" / "model.safetensors") for name in ("once", "again"))
    assert all(torch.equal(once[key], again[key]) for key in once)


def test_the_best_weights_may_be_kept(data: Path, tmp_path: Path) -> None:
    result = edgemim.finetune(config_of(data, out=tmp_path / "run", keep_best=True))
    assert result["mean_iou"] == pytest.approx(result["best"]["figure"]) and result["best"]["evaluations"] == 2


def test_a_tracker_goes_on_at_another_size(data: Path, tmp_path: Path) -> None:
    edgemim.finetune(config_of(data, out=tmp_path / "small", epochs=1, evaluate_every=0))
    larger = {**TASK, "tracker": {"template_size": 48, "search_size": 96, "head_width": 32, "attention": "cached"}}
    out = tmp_path / "large"
    result = edgemim.finetune(config_of(data, out=out, task=larger, init=str(tmp_path / "small"), epochs=0.5))
    assert "the tracker in" in result["init"]


def test_the_published_recipe_is_the_default() -> None:
    config = parse(edgemim.FinetuneConfig, ["--task", "tracking", "--batch-size", "64"], prog="edgemim finetune")
    assert isinstance(config.task, TrackingConfig)
    assert (config.epochs, config.weight_decay, config.clip_grad, config.drop_path) == (300, 1e-4, 0.1, 0.1)
    # 4e-4 at batch 128, linear in the batch; a tenth of it after 240 of 300 epochs.
    from edgemim.training.recipe import Plan

    whole = config.model_copy(update={"batch_size": 128})
    plan = Plan.of(whole, 468)
    rates = [whole.learning_rate(step, plan) for step in (0, 240 * 468 - 1, 240 * 468, plan.total_steps - 1)]
    assert rates == pytest.approx([4e-4, 4e-4, 4e-5, 4e-5])


def test_the_backbone_learns_at_its_share_of_the_rate(data: Path) -> None:
    model = OneStreamTracker(TrackerForm(template_size=32, search_size=64, head_width=16).on(VitConfig(depth=1)))
    head, backbone = build_tracker_optimizer(model, config_of(data), 0.1).param_groups
    assert (head["lr_scale"], backbone["lr_scale"]) == (1.0, 0.1)
    assert head["weight_decay"] == backbone["weight_decay"] == 1e-4
    assert sum(p.numel() for group in (head, backbone) for p in group["params"]) == model.parameter_counts()["tracker"]
    assert sum(p.numel() for p in head["params"]) == model.parameter_counts()["head"]


class Told(TrackingTask):
    """Answers with the boxes that it is told."""

    def predict(self, *_: object) -> Tensor:  # pyright: ignore
        return self.told  # pyright: ignore


def test_overlaps_are_those_of_boxes_worked_out_by_hand() -> None:
    form = TrackerForm(template_size=32, search_size=64, head_width=16)
    model = OneStreamTracker(form.on(VitConfig(depth=1)))
    task = Told(model, tracker_preprocessing(model.size))
    true = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.0, 0.0, 0.5, 0.5]])
    # The same box; one that shares a quarter of each: 0.0625 / (0.25 + 0.25 - 0.0625) = 1 / 7.
    task.told = torch.tensor([[0.25, 0.25, 0.5, 0.5], [0.25, 0.25, 0.5, 0.5]])
    template = torch.tensor([[0.0, 0.0, 1.0, 1.0], [0.25, 0.25, 0.5, 0.5]])
    pixels, numbers = torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.arange(2)
    found = measure(task, [PairBatch(pixels, pixels, template, true, numbers, numbers)])
    assert found["mean_iou"] == pytest.approx(100 * (1 + 1 / 7) / 2, abs=0.01) and found["over_half"] == 50
    # Unmoved: templates halved (factors 2 and 4) in the middle: the same box, and a quarter box that shares 1/64.
    share = 0.015625 / (0.25 + 0.0625 - 0.015625)
    assert found["unmoved_mean_iou"] == pytest.approx(100 * (1 + share) / 2, abs=0.01)


def test_mistakes_are_one_sentence_and_nothing_is_written(data: Path, tmp_path: Path, capsys) -> None:
    out = tmp_path / "out"
    for changes, sentence in (
        ({"crop_pct": 0.5}, "'crop_pct' would have no effect with --task tracking"),
        ({"val": data}, "'val' would have no effect"),
        ({"optimizer": "sgd"}, "'optimizer' would have no effect"),
        ({"data": tmp_path / "absent"}, "no folder at"),
        ({"batch_size": 64}, "batch_size 64 is larger than the data"),
        ({"encoder": "hiera_micro"}, "plain vision transformer"),
        ({"task": {**TASK, "tracker": {"template_size": 33}}}, "not a multiple of the encoder's patch"),
    ):
        with pytest.raises(UserError, match=sentence):
            edgemim.finetune(config_of(Path(str(changes.pop("data", data))), out=out, **changes))
    assert not out.exists()
    words = ["finetune", "--task", "tracking", "--init", "scratch", "--data", str(tmp_path), "--out", str(out)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "laid out like no tracking set" in error and error.count("\n") == 1 and not out.exists()
