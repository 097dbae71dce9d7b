"""Boxes of still pictures: tables with their faults named by row, COCO, and parts of masks against a slow search."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tracking_sets import HEIGHT, WIDTH, photo, write_coco, write_masks

from edgemim.data.tracking.stills import coco_shots, listed_shots, mask_shots, part_boxes
from edgemim.edge.tracking.boxes import Box
from edgemim.errors import UserError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a.jpg", "b.jpg"):
        Image.fromarray(photo("coffee")[:HEIGHT, :WIDTH]).save(tmp_path / name)
    return tmp_path


def test_a_table_and_json_say_the_same(folder: Path) -> None:
    (folder / "boxes.csv").write_text("file,left,top,width,height,label\na.jpg,1,2,30.5,40,cup\nb.jpg,5,6,7,8,cup\n")
    shots = listed_shots(folder, None)
    assert [(shot.path.name, shot.box) for shot in shots] == [
        ("a.jpg", Box(1, 2, 30.5, 40)),
        ("b.jpg", Box(5, 6, 7, 8)),
    ]
    (folder / "other.json").write_text(json.dumps({"a.jpg": [[1, 2, 30.5, 40]], "b.jpg": [[5, 6, 7, 8]]}))
    assert listed_shots(folder, folder / "other.json") == shots


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ("a.jpg,1,2,0,40", r"boxes\.csv, line 3: the box \[1\.0, 2\.0, 0\.0, 40\.0\] has no area"),
        ("a.jpg,1,2,-3,40", "has no area"),
        ("a.jpg,nan,2,3,40", "has no area"),
        ("a.jpg,-50,2,3,40", "lies outside"),
        ("a.jpg,x,2,3,40", r"line 3: \['x', '2', '3', '40'\] is not left, top, width, height"),
        ("a.jpg,1,2", "is not left, top, width, height"),
        ("gone.jpg,1,2,3,4", r"names .*gone\.jpg, which is not there"),
    ],
)
def test_bad_boxes_are_named(folder: Path, row: str, sentence: str) -> None:
    (folder / "boxes.csv").write_text(f"file,left,top,width,height\nb.jpg,5,6,7,8\n{row}\n")
    with pytest.raises(UserError, match=sentence):
        listed_shots(folder, None)


def test_a_table_that_is_none_is_refused(folder: Path) -> None:
    with pytest.raises(UserError, match=r"no boxes for the pictures in .*boxes\.csv"):
        listed_shots(folder, None)
    for text, sentence in (("file,x,y\n", "no column 'left'"), ("file,left,top,width,height\n", "names no object")):
        (folder / "boxes.csv").write_text(text)
        with pytest.raises(UserError, match=sentence):
            listed_shots(folder, None)
    (folder / "boxes.json").write_text("[1, 2]")
    with pytest.raises(UserError, match=r"boxes\.json holds no boxes"):
        listed_shots(folder, folder / "boxes.json")


def test_coco_without_crowds_and_boxes_without_area(tmp_path: Path) -> None:
    write_coco(tmp_path)
    shots = coco_shots(tmp_path, "")
    assert len(shots) == 4 and {shot.box for shot in shots} == {Box(20.5, 10, 30.5, 40)}
    assert all(shot.path.is_file() for shot in shots)
    with pytest.raises(UserError, match=r"no pictures at .*val2017"):
        coco_shots(tmp_path, "val2017")
    (tmp_path / "annotations" / "instances_train2017.json").write_text('{"images": []}')
    with pytest.raises(UserError, match="is no annotation of COCO's"):
        coco_shots(tmp_path, "train2017")


def slow_parts(mask: np.ndarray, number: int) -> set[Box]:
    """Boxes of the connected parts, by visiting one pixel after another."""
    left_over = {(int(y), int(x)) for y, x in zip(*np.nonzero(mask == number), strict=True)}
    boxes = set()
    while left_over:
        stack, part = [left_over.pop()], []
        while stack:
            y, x = stack.pop()
            part.append((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left_over
            left_over -= near
            stack += near
        top, left = (min(place[axis] for place in part) for axis in (0, 1))
        bottom, right = (max(place[axis] for place in part) for axis in (0, 1))
        boxes.add(Box(left, top, right - left + 1, bottom - top + 1))
    return boxes


def test_parts_of_masks_are_those_of_a_slow_search() -> None:
    levels = np.digitize(photo("chelsea")[:90, :120].mean(2), (90, 120, 150)).astype(np.uint8)
    levels[:4] = 255
    for number in (1, 2):
        slow = slow_parts(levels, number)
        assert set(part_boxes(levels, [number], 1)) == slow and len(slow) > 3
        large = {box for box in slow if min(box.width, box.height) >= 8}
        assert set(part_boxes(levels, [number], 8)) == large


def test_masks_give_every_part_of_the_chosen_classes(tmp_path: Path) -> None:
    write_masks(tmp_path, images=2)
    train, held = mask_shots(tmp_path, (), 10)
    assert held == []
    assert [shot.box for shot in train if shot.path.stem == "0"] == [Box(20, 10, 40, 30), Box(70, 50, 30, 40)]
    assert len(mask_shots(tmp_path, ("background",), 10)[0]) == 2
    with pytest.raises(UserError, match="has no class 'cat'; its classes are background, thing"):
        mask_shots(tmp_path, ("cat",), 10)


def test_a_sets_own_split_is_held_out(tmp_path: Path) -> None:
    write_masks(tmp_path / "train", images=3)
    write_masks(tmp_path / "val", images=2)
    (tmp_path / "classes.txt").write_text("background\nthing\n")
    train, held = mask_shots(tmp_path, ("thing",), 10)
    assert (
        len(train) == 6 and len(held) == 4 and {"train", "val"} == {shots[0].path.parts[-3] for shots in (train, held)}
    )
