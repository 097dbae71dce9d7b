"""Boxes of still pictures: from a table or JSON beside them, from COCO's annotations, or around the parts of masks."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from edgemim.data.segmentation.folder import SegmentationFolder
from edgemim.data.segmentation.layouts import read_layout
from edgemim.data.tracking.pairs import Shot
from edgemim.edge.machine import usable_cpus
from edgemim.edge.segmentation import IGNORE
from edgemim.edge.tracking.boxes import Box
from edgemim.errors import UserError

BOX_FILES = ("boxes.csv", "boxes.json")
_COLUMNS = ("file", "left", "top", "width", "height")
_BACKGROUND = ("background", "void", "unlabeled", "unlabelled")


def listed_shots(root: Path, table: Path | None) -> list[Shot]:
    """Objects that a file names: CSV with the header file,left,top,width,height (a row an object, more columns do not
    matter), or JSON of file -> list of [left, top, width, height].

    Raises:
        UserError: naming the row, if a box is no box, or a picture is not there.
    """
    path = table or next((root / name for name in BOX_FILES if (root / name).is_file()), None)
    if path is None:
        raise UserError(
            f"no boxes for the pictures in {root}; write them into {root / BOX_FILES[0]} ({','.join(_COLUMNS)})"
        )
    try:
        rows = list(_json_rows(path) if path.suffix == ".json" else _csv_rows(path))
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path} cannot be read: {error}") from error
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise UserError(f"{path} holds no boxes ({error}); write {','.join(_COLUMNS)}, a row an object") from error
    shots = [Shot(root / file, _checked(values, f"{path}, {where}")) for where, file, values in rows]
    missing = next((shot.path for shot in shots if not shot.path.is_file()), None)
    if missing is not None:
        raise UserError(f"{path} names {missing}, which is not there; correct the name or take the row out")
    if not shots:
        raise UserError(f"{path} names no object")
    return shots


def _csv_rows(path: Path) -> Iterator[tuple[str, str, Sequence[Any]]]:
    with path.open(newline="", encoding="utf-8-sig") as stream:
        table = csv.DictReader(stream)
        lacking = [column for column in _COLUMNS if column not in (table.fieldnames or ())]
        if lacking:
            raise ValueError(f"no column {lacking[0]!r} in its first line")
        for row in table:
            yield f"line {table.line_num}", row["file"], [row[column] for column in _COLUMNS[1:]]


def _json_rows(path: Path) -> Iterator[tuple[str, str, Sequence[Any]]]:
    for file, boxes in json.loads(path.read_text()).items():
        for number, box in enumerate(boxes, start=1):
            yield f"{file!r}, box {number}", file, box


def _checked(values: Sequence[Any], where: str) -> Box:
    try:
        left, top, width, height = (float(value) for value in values)
    except (ValueError, TypeError):
        raise UserError(f"{where}: {list(values)} is not left, top, width, height") from None
    if not all(map(math.isfinite, (left, top, width, height))) or min(width, height) <= 0:
        raise UserError(f"{where}: the box {[left, top, width, height]} has no area; correct it or take it out")
    if left + width <= 0 or top + height <= 0:
        raise UserError(
            f"{where}: the box {[left, top, width, height]} lies outside its picture; correct it or take it out"
        )
    return Box(left, top, width, height)


def coco_shots(root: Path, split: str) -> list[Shot]:
    """Objects of annotations/instances_SPLIT.json (train2017 where no split is named), their pictures in SPLIT/ or
    images/SPLIT/; crowds and boxes without area are left out, as published.

    Raises:
        UserError: if there is no such file, it is no COCO annotation, or the pictures' folder is missing.
    """
    split = split or "train2017"
    path = root / "annotations" / f"instances_{split}.json"
    folder = next((found for found in (root / split, root / "images" / split) if found.is_dir()), None)
    if folder is None:
        raise UserError(f"no pictures at {root / split} or {root / 'images' / split}; unpack COCO's {split}.zip there")
    try:
        content = json.loads(path.read_text())
        names = {image["id"]: image["file_name"] for image in content["images"]}
        objects = [entry for entry in content["annotations"] if not entry.get("iscrowd", 0)]
        return [
            Shot(folder / names[entry["image_id"]], Box(*map(float, entry["bbox"])))
            for entry in objects
            if min(entry["bbox"][2:]) > 0
        ]
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}; COCO keeps its boxes there") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no annotation of COCO's ({type(error).__name__}: {error})") from error


def mask_shots(root: Path, classes: Iterable[str], min_side_px: float) -> tuple[list[Shot], list[Shot]]:
    """Objects of a segmentation set, for training and held out (none if the set has no such split): the box of every
    connected part of a class.

    Args:
        root: a set as `--task segmentation` takes it: images/ and masks/, or train/ and val/ of these.
        classes: which classes are objects; default all but background and void.
        min_side_px: smaller parts are left out.

    Raises:
        UserError: if there is no such set or class, or a mask is at fault.
    """
    found = read_layout(root)
    chosen = list(classes) or [name for name in found.classes if name.lower() not in _BACKGROUND]
    unknown = [name for name in chosen if name not in found.classes]
    if unknown:
        raise UserError(f"{root} has no class {unknown[0]!r}; its classes are {', '.join(found.classes)}")
    numbers = [found.classes.index(name) for name in chosen]
    held = next((split for split in ("val", "test") if split in found.splits), None)
    cv2.setNumThreads(1)  # the pool of threads is ours
    parts = []
    for split in ("train", held):
        pairs = found.splits.get(split, []) if split else []
        folder = SegmentationFolder(root, pairs, found.classes, found.code)
        with ThreadPoolExecutor(usable_cpus()) as pool:
            boxes = pool.map(lambda i, f=folder: part_boxes(f.mask(i), numbers, min_side_px), range(len(folder)))
            parts.append([Shot(folder.path(i), box) for i, found_boxes in enumerate(boxes) for box in found_boxes])
    return parts[0], parts[1]


def part_boxes(mask: np.ndarray, numbers: Sequence[int], min_side_px: float) -> list[Box]:
    """Boxes of the connected parts (over corners, too) of the given classes in uint8 [h, w], 255 being none; parts that
    are narrower or lower than `min_side_px` are left out."""
    boxes = []
    for number in numbers:
        if number == IGNORE:
            continue
        _, _, stats, _ = cv2.connectedComponentsWithStats((mask == number).astype(np.uint8), connectivity=8)
        boxes += [Box(*map(float, row[:4])) for row in stats[1:] if min(row[2:4]) >= min_side_px]
    return boxes
