"""Labelled data and what export asks of a task, on real photos."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_training import NANO

from edgemim.data.labelled import spread_over_classes, stratified_split
from edgemim.edge.images import Preprocessing, load_image
from edgemim.errors import UserError
from edgemim.models.weights import bare_vit
from edgemim.tasks import ClassificationTask, LabelledData

PREPROCESSING = Preprocessing(image_size=32, crop_pct=0.9, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def coloured(root: Path, **counts: int) -> Path:
    """Small pictures, `counts` of them a class."""
    for label, count in counts.items():
        (root / label).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (40, 40), (10 * i, len(label), 99)).save(root / label / f"{i}.png")
    return root


def task_on(data: LabelledData | None, labels: tuple[str, ...] = ("a", "b", "c", "d")) -> ClassificationTask:
    torch.manual_seed(0)
    model = bare_vit(NANO, num_classes=len(labels))
    return ClassificationTask(model, labels, PREPROCESSING, data, architecture={"vit": NANO.model_dump()})


@pytest.fixture(scope="module")
def data(photos: Path) -> LabelledData:
    return LabelledData.open(photos, val_share=0.2)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.9])
def test_each_class_gives_its_share(share: float) -> None:
    labels = np.repeat([0, 1, 2, 3], [1, 2, 13, 100])
    kept, held = stratified_split(labels, share, seed=3)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    for label, count in Counter(labels.tolist()).items():
        assert (labels[held] == label).sum() == min(round(share * count), count - 1)


def test_a_split_follows_its_seed() -> None:
    labels = np.repeat([0, 1], 50)
    first, again, other = (stratified_split(labels, 0.2, seed)[1] for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_one_folder_is_split(data: LabelledData, photos: Path) -> None:
    assert data.train.classes == data.val.classes == ("astronaut", "chelsea", "coffee", "rocket")
    assert (len(data.train), len(data.val)) == (96, 24)
    assert Counter(data.val.labels.tolist()) == {0: 6, 1: 6, 2: 6, 3: 6}
    paths = [{folder.path(i) for i in range(len(folder))} for folder in (data.train, data.val)]
    assert paths[0].isdisjoint(paths[1])
    assert data.held_out == "20% of each class, seed 0"
    assert LabelledData.open(photos, val_share=0.2).val.fingerprint == data.val.fingerprint


@pytest.mark.parametrize("held", ["val", "test"])
def test_a_folder_with_its_own_split(tmp_path: Path, held: str) -> None:
    coloured(tmp_path / "train", cat=3, dog=2)
    coloured(tmp_path / held, cat=1, dog=2)
    data = LabelledData.open(tmp_path)
    assert data.train.classes == ("cat", "dog")
    assert (len(data.train), data.val.labels.tolist()) == (5, [0, 1, 1])
    assert data.held_out == f"folder {tmp_path / held}"


def test_a_val_folder_of_ones_own(tmp_path: Path) -> None:
    """Also where the data hold a split of their own: only train/ is trained on."""
    coloured(tmp_path / "data" / "train", cat=3, dog=2)
    coloured(tmp_path / "data" / "val", cat=1, dog=1)
    coloured(tmp_path / "other", cat=2, dog=4)
    data = LabelledData.open(tmp_path / "data", tmp_path / "other")
    assert data.train.classes == ("cat", "dog")
    assert len(data.train) == 5
    assert data.val.labels.tolist() == [0, 0, 1, 1, 1, 1]
    assert str(tmp_path / "other") in data.held_out


def test_data_that_cannot_be_learnt_from_are_refused(tmp_path: Path) -> None:
    coloured(tmp_path / "one", cat=3)
    with pytest.raises(UserError, match="no classes"):
        LabelledData.open(tmp_path / "one")
    coloured(tmp_path / "two", cat=3, dog=3)
    with pytest.raises(UserError, match="--val-share"):
        LabelledData.open(tmp_path / "two", val_share=0.1)
    coloured(tmp_path / "val", cat=1, zebra=1)
    with pytest.raises(UserError, match="zebra"):
        LabelledData.open(tmp_path / "two", tmp_path / "val")
    with pytest.raises(UserError, match="absent"):
        LabelledData.open(tmp_path / "absent")


def test_a_limit_takes_from_all_classes_in_turn() -> None:
    labels = np.array([2, 0, 0, 0, 1, 1, 2, 0])
    assert spread_over_classes(labels, 3).tolist() == [0, 1, 4]
    assert spread_over_classes(labels, 5).tolist() == [0, 1, 2, 4, 5]
    assert spread_over_classes(labels, 7).tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert spread_over_classes(labels, 99).tolist() == list(range(8))


def test_evaluation_batches_are_the_edge_wings_own_numbers(data: LabelledData) -> None:
    task = task_on(data)
    batches = list(task.evaluation_batches(10, batch_size=4))
    assert [len(images) for images, _ in batches] == [4, 4, 2]
    images, labels = (np.concatenate(parts) for parts in zip(*batches, strict=True))
    assert Counter(labels.tolist()) == {0: 3, 1: 3, 2: 2, 3: 2}
    chosen = spread_over_classes(data.val.labels, 10)
    for image, label, index in zip(images, labels, chosen, strict=True):
        assert label == data.val.label(int(index))
        expected = PREPROCESSING(load_image(data.val.path(int(index))))
        np.testing.assert_allclose(image, expected, rtol=0, atol=1e-6)
    assert sum(len(part) for part, _ in task.evaluation_batches(None)) == len(data.val)


def test_calibration_draws_training_images_with_its_seed(data: LabelledData) -> None:
    task = task_on(data)
    first, again, other = (
        np.concatenate(list(task.calibration_batches(12, batch_size=5, seed=seed))) for seed in (0, 0, 1)
    )
    assert first.shape == (12, 3, 32, 32)
    assert first.dtype == np.float32
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    # Train and edge wing round differently in the last bit: the nearest picture, at almost no distance.
    pictures = {
        part: np.stack([PREPROCESSING(load_image(folder.path(i))) for i in range(len(folder))])
        for part, folder in (("train", data.train), ("held out", data.val))
    }
    for image in first:
        assert np.abs(pictures["train"] - image).max((1, 2, 3)).min() < 1e-5
        assert np.abs(pictures["held out"] - image).max((1, 2, 3)).min() > 1e-2
    assert sum(len(part) for part in task.calibration_batches(10_000)) == len(data.train)


def test_what_export_asks() -> None:
    task = task_on(None).train()
    assert (task.task_name, task.input_name, task.output_names) == ("classification", "images", ("logits",))
    example = task.example_input(3)
    assert example.shape == (3, 3, 32, 32)
    assert torch.equal(example, task.example_input(3))
    module = task.export_module()
    assert not module.training
    assert module(example).shape == (3, 4)


def test_images_that_are_gone_are_said(photos: Path) -> None:
    task = task_on(None, ("astronaut", "chelsea", "coffee", "rocket"))
    for use in (
        task.held_out,
        lambda: list(task.evaluation_batches(1)),
        lambda: list(task.calibration_batches(1)),
    ):
        with pytest.raises(UserError, match="--data DIR"):
            use()
    assert len(task.held_out(photos)) == 120


@pytest.mark.parametrize("held_out", ["val", "test"])
def test_other_images_are_measured_by_their_own_held_out_part(tmp_path: Path, held_out: str) -> None:
    coloured(tmp_path / "train", a=2, b=2)
    coloured(tmp_path / held_out, a=1, b=3)
    held = task_on(None).held_out(tmp_path)
    assert held.labels.tolist() == [0, 1, 1, 1]
    assert held.classes == ("a", "b", "c", "d")
