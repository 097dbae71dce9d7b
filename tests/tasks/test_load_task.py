"""Opening a finished fine-tuning run: the same predictions, with or without its images, and clear refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from tiny_training import NANO, pixels

from edgemim.edge.images import Preprocessing
from edgemim.errors import UserError
from edgemim.models.weights import save_model
from edgemim.tasks import ClassificationTask, LabelledData, load_task
from edgemim.tasks.classification import build_model


@pytest.fixture
def finished(photos: Path, tmp_path: Path) -> tuple[Path, ClassificationTask]:
    """A run folder as `edgemim finetune` leaves it, and the task that was saved."""
    data = tmp_path / "data"
    shutil.copytree(photos, data)
    opened = LabelledData.open(data, val_share=0.25, seed=7)
    torch.manual_seed(0)
    architecture = {"vit": NANO.model_dump(mode="json")}
    model = build_model(architecture, 4)
    task = ClassificationTask(
        model, opened.train.classes, Preprocessing(image_size=32, crop_pct=1.0), opened, architecture=architecture
    )
    save_model(tmp_path / "run" / "model", model.state_dict(), task.facts())
    config = {"data": str(data), "val": None, "val_share": 0.25, "seed": 7}
    (tmp_path / "run" / "run.json").write_text(json.dumps({"verb": "finetune", "config": config}))
    return tmp_path / "run", task.eval()


def test_the_same_predictions_labels_and_images(finished: tuple[Path, ClassificationTask]) -> None:
    run, task = finished
    loaded = load_task(run)
    assert torch.equal(loaded.predict(pixels(3)), task.predict(pixels(3)))  # pyright: ignore
    assert not loaded.training
    assert (loaded.labels, loaded.preprocessing) == (task.labels, task.preprocessing)
    assert loaded.data is not None and task.data is not None
    assert loaded.data.val.fingerprint == task.data.val.fingerprint
    assert loaded.facts() == task.facts()


def test_without_its_images_a_run_still_opens(finished: tuple[Path, ClassificationTask]) -> None:
    run, task = finished
    assert task.data is not None
    shutil.rmtree(task.data.train.root)
    loaded = load_task(run)
    assert loaded.predict(pixels(2)).shape == (2, 4)  # pyright: ignore
    with pytest.raises(UserError, match="--data DIR"):
        next(loaded.evaluation_batches(4))


def test_changed_images_do_not_lock_a_run(finished: tuple[Path, ClassificationTask]) -> None:
    run, task = finished
    assert task.data is not None
    shutil.copytree(task.data.train.root / "coffee", task.data.train.root / "zebra")
    assert load_task(run).data is None
    with pytest.raises(UserError, match="classes of"):
        load_task(run, data=task.data.train.root)


def test_other_images_may_be_given(finished: tuple[Path, ClassificationTask], photos: Path) -> None:
    opened = load_task(finished[0], data=photos).data
    assert opened is not None
    assert opened.train.root == photos


def test_timm_networks_open_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = build_model({"timm": "test_vit"}, 2).eval()
    task = ClassificationTask(model, ("a", "b"), Preprocessing(image_size=160), None, architecture={"timm": "test_vit"})
    save_model(tmp_path / "model", model.state_dict(), task.facts())
    x = task.example_input(1)
    with torch.no_grad():
        assert torch.equal(load_task(tmp_path).export_module()(x), task.export_module()(x))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"kind": "encoder"}, "holds an encoder"),
        ({"labels": None}, "does not describe"),
        ({"architecture": {"vit": {"width": 7}}}, "does not describe"),
        ({"architecture": {}}, "does not describe"),
        ({"architecture": {"timm": "no_such_network"}}, "does not describe"),
        ({"preprocessing": {"image_size": "large"}}, "does not describe"),
        ({"labels": ["a", "b"]}, "do not fit"),
    ],
)
def test_odd_runs_are_refused(finished: tuple[Path, ClassificationTask], change: dict, word: str) -> None:
    run, task = finished
    save_model(run / "model", task.model.state_dict(), {**task.facts(), **change})
    with pytest.raises(UserError, match=word):
        load_task(run)
