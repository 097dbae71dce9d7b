"""The whole verb on real photos: from a pre-trained encoder, stopped and resumed, and every mistake before a step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_segmentation import HEIGHT, LABELS, SETTINGS, WIDTH, small_segmentation_run, small_set, write_pairs

torch = pytest.importorskip("torch")

import edgemim  # noqa: E402
from edgemim.cli import main  # noqa: E402
from edgemim.config import parse  # noqa: E402
from edgemim.errors import UserError  # noqa: E402
from edgemim.models.weights import read_tensors  # noqa: E402
from edgemim.tasks.segmentation import SegmentationConfig  # noqa: E402

torch.set_num_threads(1)


def config_of(**changes: Any) -> edgemim.FinetuneConfig:
    settings = {"task": SETTINGS, "init": "scratch", "encoder": "vit_nano", "epochs": 1, "batch_size": 8}
    settings |= {"evaluate_every": 0, "workers": 0, "device": "cpu"}
    return edgemim.FinetuneConfig.model_validate(settings | changes)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_set(tmp_path_factory.getbasetemp() / "small_set")


def test_a_run_leaves_figures_pictures_and_a_model(tmp_path_factory: pytest.TempPathFactory) -> None:
    run = small_segmentation_run(tmp_path_factory.getbasetemp() / "small_segmentation")
    record = json.loads((run / "run.json").read_text())
    results = record["results"]
    assert record["status"] == "done" and record["config"]["task"]["name"] == "segmentation"
    assert set(results["per_class"]) == set(LABELS)
    assert results["evaluated_images"] == 6 and results["held_out"] == "the set's own split 'val'"
    assert np.sum(results["confusion"]) == 6 * (HEIGHT - 4) * (WIDTH - 4)
    for name in ("overlays.png", "confusion.png"):
        with Image.open(run / "pictures" / name) as picture:
            assert picture.width > 300


def test_stopped_and_resumed_is_the_same_run(root: Path, tmp_path: Path) -> None:
    task = {**SETTINGS, "transform": {}, "head": {"channels": 16, "dropout": 0.1}}
    options = {"task": task, "data": root, "epochs": 2, "drop_path": 0.1, "ema_decay": 0.9, "evaluate_every": 1}
    edgemim.finetune(config_of(out=tmp_path / "whole", **options))
    edgemim.finetune(config_of(out=tmp_path / "parts", **options, checkpoint_minutes=0, keep_checkpoints=50))
    checkpoints = sorted((tmp_path / "parts" / "checkpoints").glob("step-*"))
    for path in checkpoints[2:]:
        path.rename(path.with_name(path.name + ".gone"))
    edgemim.finetune(config_of(out=tmp_path / "parts", **options, resume=True))
    whole, parts = (read_tensors(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "parts"))
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    metrics = (tmp_path / "whole" / "metrics.jsonl").read_text()
    assert "val_miou" in metrics and "train_pixel_accuracy" in metrics


def test_the_best_by_miou_is_handed_on(root: Path, tmp_path: Path) -> None:
    options = {"data": root, "epochs": 6, "evaluate_every": 1, "patience": 1, "base_lr": 0.03}
    results = edgemim.finetune(config_of(out=tmp_path / "run", **options))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    seen = [line["val_miou"] for line in lines if "val_miou" in line]
    assert results["best"]["figure"] == pytest.approx(max(seen)) == pytest.approx(results["miou"])
    assert results["best"]["evaluations"] == len(seen)
    assert results["best"]["stopped_early"] is (len(seen) < 6)


def test_the_command_line_knows_the_tasks_own_defaults(tmp_path: Path) -> None:
    words = ["--task", "segmentation", "--task.crop-size", "64", "--task.transform.no-flip", "--epochs", "3"]
    config = parse(edgemim.FinetuneConfig, ["--data", str(tmp_path), *words], prog="edgemim finetune")
    assert isinstance(config.task, SegmentationConfig) and not config.task.transform.flip
    assert (config.task.crop_size, config.epochs, config.batch_size, config.layer_decay) == (64, 3, 16, 0.8)
    plain = parse(edgemim.FinetuneConfig, ["--task", "classification"], prog="edgemim finetune")
    assert (plain.batch_size, plain.layer_decay, plain) == (256, 0.85, edgemim.FinetuneConfig())


def test_mistakes_are_one_sentence_and_nothing_is_written(root: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    inference = {**SETTINGS, "inference": {"short_side": 48, "stride": 40}}
    for changes, sentence in (
        ({}, "give --data DIR"),
        ({"data": tmp_path / "absent"}, "no folder at"),
        ({"data": root, "crop_pct": 0.5}, "'crop_pct' would have no effect with --task segmentation"),
        ({"data": root, "pool": "cls"}, "'pool' would have no effect with --task segmentation"),
        ({"data": root, "task": inference}, r"task\.inference\.stride 40 is above"),
        ({"data": root, "task": {**SETTINGS, "head": {"taps": (1, 2)}}}, r"task\.head: taps \[1, 2\] must be four"),
        ({"data": root, "task": {**SETTINGS, "crop_size": 36}}, "not a multiple of patch_size 8"),
        ({"data": root, "batch_size": 25}, "batch_size 25 is larger than the data"),
        ({"data": root, "task": {**SETTINGS, "classes": tmp_path / "no.txt"}}, "cannot read the class names"),
    ):
        with pytest.raises(UserError, match=sentence):
            edgemim.finetune(config_of(out=out, **changes))
    assert not out.exists()


@pytest.fixture
def own(tmp_path: Path) -> Path:
    write_pairs(tmp_path / "own", 10, seed=9)
    (tmp_path / "own" / "classes.txt").write_text("\n".join(LABELS))
    return tmp_path / "own"


def test_faulty_masks_are_found_before_the_first_step(own: Path, tmp_path: Path, capsys) -> None:
    mask = own / "masks" / "004.png"
    whole = mask.read_bytes()
    words = [
        "finetune",
        "--task",
        "segmentation",
        "--data",
        str(own),
        "--out",
        str(tmp_path / "out"),
        "--init",
        "scratch",
    ]
    words += ["--encoder", "vit_nano", "--task.crop-size", "32", "--task.inference.stride", "24", "--batch-size", "4"]
    for change, sentence in (
        (lambda: Image.fromarray(np.full((HEIGHT, WIDTH), 3, np.uint8)).save(mask), "holds the value 3"),
        (lambda: Image.fromarray(np.zeros((HEIGHT, 9), np.uint8)).save(mask), "must have the same size"),
        (lambda: mask.write_bytes(whole[:200]), "cannot be"),
        (mask.unlink, "has no mask"),
    ):
        change()
        assert main(words) == 2
        error = capsys.readouterr().err
        assert sentence in error and "004" in error and error.count("\n") == 1
    for path in (own / "masks").iterdir():
        Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(path)
    Image.fromarray(np.zeros((HEIGHT, WIDTH), np.uint8)).save(mask)
    assert main(words) == 2
    assert "only the class 'dark'" in capsys.readouterr().err
    (own / "classes.txt").write_text("dark\n")
    assert main(words) == 2
    assert "names 1 class" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_class_without_pixels_is_said(own: Path, tmp_path: Path) -> None:
    (own / "classes.txt").write_text("\n".join([*LABELS, "unicorn"]))
    result = edgemim.finetune(config_of(data=own, out=tmp_path / "run", val_share=0.2, batch_size=8))
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert any("unicorn" in warning for warning in record["warnings"])
    assert result["per_class"]["unicorn"]["accuracy"] is None
