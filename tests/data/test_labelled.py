"""Labelled data: splits, held-out shares and class files over every form; what cannot be learnt from is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from packed_files import samples_of, write_table, write_tar

from edgemim.data.labelled import LabelledData, open_held_out
from edgemim.errors import UserError


@pytest.fixture
def folder(photos: Path, tmp_path: Path) -> Path:
    shutil.copytree(photos, tmp_path / "folder")
    return tmp_path / "folder"


def test_a_share_is_the_same_images_in_every_form(folder: Path, tmp_path: Path) -> None:
    table = write_table(folder, tmp_path / "t.csv")
    tar = write_tar(tmp_path / "t.tar", samples_of(folder, "name"))
    parts = [LabelledData.open(path, val_share=0.2, seed=3) for path in (folder, table, tar)]
    for data in parts:
        assert (len(data.train), len(data.val)) == (96, 24)
        assert [data.val.read(i) for i in range(24)] == [parts[0].val.read(i) for i in range(24)]
        assert data.held_out == "20% of each class, seed 3"
        assert np.bincount(data.val.labels).tolist() == [6] * 4


def test_forms_mix(folder: Path, tmp_path: Path) -> None:
    table = write_table(folder, tmp_path / "t.csv", split={0: "train", 1: "train", 2: "test"})
    tar = write_tar(tmp_path / "v.tar", samples_of(folder, "json"))
    own = LabelledData.open(table)
    assert (len(own.train), len(own.val), own.held_out) == (80, 40, f"csv {table}")
    other = LabelledData.open(folder, tar)
    assert (len(other.train), len(other.val), other.held_out) == (120, 120, f"tar {tar}")
    assert other.val.labels.tolist() == other.train.labels.tolist()
    assert len(open_held_out(table, own.train.classes)) == 40
    assert len(open_held_out(tar, own.train.classes[::-1])) == 120


def test_shards_with_numbers_measure_a_model_with_names(folder: Path, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "v.tar", samples_of(folder, "cls"))
    data = LabelledData.open(folder, tar)
    assert data.val.classes == data.train.classes
    assert data.val.labels.tolist() == data.train.labels.tolist()


def test_a_class_file_fixes_set_and_order(folder: Path, tmp_path: Path) -> None:
    names = tmp_path / "classes.txt"
    names.write_text("rocket\ncoffee\nchelsea\nastronaut\n")
    reference = LabelledData.open(folder, val_share=0.2)
    for path in (folder, write_table(folder, tmp_path / "t.csv")):
        data = LabelledData.open(path, val_share=0.2, classes=names)
        assert data.train.classes == ("rocket", "coffee", "chelsea", "astronaut")
        assert data.train.labels.tolist() == [3 - label for label in reference.train.labels.tolist()]


@pytest.mark.parametrize("form", ["folder", "csv", "tar"])
def test_a_label_that_is_not_in_the_class_file(folder: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "c.txt").write_text("rocket\ncoffee\nchelsea\n")
    path, where = {
        "folder": (folder, r"astronaut/00\.png"),
        "csv": (write_table(folder, tmp_path / "t.csv"), "line 2"),
        "tar": (write_tar(tmp_path / "t.tar", samples_of(folder, "name")), r"t\.tar:astronaut-00\.png"),
    }[form]
    with pytest.raises(UserError, match=rf"class 'astronaut', .*in .*c\.txt; add it there.*\(first: .*{where}\)"):
        LabelledData.open(path, classes=tmp_path / "c.txt")


@pytest.mark.parametrize("form", ["folder", "csv", "tar"])
def test_an_empty_class_of_the_class_file(folder: Path, tmp_path: Path, form: str) -> None:
    (tmp_path / "c.txt").write_text("rocket\ncoffee\nchelsea\nastronaut\nunicorn\n")
    path = {
        "folder": folder,
        "csv": write_table(folder, tmp_path / "t.csv"),
        "tar": write_tar(tmp_path / "t.tar", samples_of(folder, "name")),
    }[form]
    with pytest.raises(UserError, match="class 'unicorn' has no image in"):
        LabelledData.open(path, classes=tmp_path / "c.txt")


def test_an_empty_class_folder(folder: Path) -> None:
    (folder / "tea").mkdir()
    with pytest.raises(UserError, match=r"class folder .*folder/tea holds no image; add some, remove the folder"):
        LabelledData.open(folder)


def test_an_empty_class_folder_among_held_out_images_is_no_fault(folder: Path, tmp_path: Path, photos: Path) -> None:
    shutil.rmtree(folder / "coffee")
    (folder / "coffee").mkdir()
    assert len(LabelledData.open(photos, folder).val) == 90


def test_one_class_only(folder: Path, tmp_path: Path) -> None:
    one = tmp_path / "one"
    shutil.copytree(folder / "coffee", one / "coffee")
    cases = (
        (one, "has no classes: put its images into one folder a class, at least two"),
        (write_table(one, tmp_path / "t.csv"), r"t\.csv are of one class, 'coffee'; at least two"),
        (write_tar(tmp_path / "t.tar", samples_of(one)), r"t\.tar are of one class, '0'; at least two"),
    )
    for path, sentence in cases:
        with pytest.raises(UserError, match=sentence):
            LabelledData.open(path)


def test_no_labels_at_all(folder: Path, tmp_path: Path) -> None:
    tar = write_tar(tmp_path / "t.tar", samples_of(folder, "none"))
    with pytest.raises(UserError, match=r"t\.tar:astronaut-00\.png has no label; give each image KEY\.jpg a KEY\.cls"):
        LabelledData.open(tar)
    with pytest.raises(UserError, match="has no label"):
        LabelledData.open(folder, tar)
