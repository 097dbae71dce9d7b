"""The layouts of published sets, made small of real crops, give the same classes; mistakes in them are named."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_segmentation import LABELS, write_pairs

from edgemim.data.segmentation.layouts import read_layout
from edgemim.errors import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("source")
    write_pairs(root, 4, seed=0)
    return root


def pairs_of(source: Path) -> list[tuple[Image.Image, np.ndarray]]:
    found = []
    for path in sorted((source / "images").iterdir()):
        with Image.open(path) as image, Image.open(source / "masks" / f"{path.stem}.png") as mask:
            found.append((image.convert("RGB"), np.array(mask)))
    return found


def save(image: Image.Image, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def make_pairs(source: Path, root: Path) -> None:
    for number, (image, mask) in enumerate(pairs_of(source)):
        split = "val" if number == 3 else "train"
        save(image, root / split / "images" / f"{number}.jpg")
        save(Image.fromarray(mask), root / split / "masks" / f"{number}.png")
    (root / "classes.json").write_text(json.dumps(LABELS))


def make_ade20k(source: Path, root: Path) -> None:
    for number, (image, mask) in enumerate(pairs_of(source)):
        split = "validation" if number == 3 else "training"
        save(image, root / "images" / split / f"ADE_{number}.jpg")
        shifted = np.where(mask == 255, 0, mask + 1).astype(np.uint8)
        save(Image.fromarray(shifted), root / "annotations" / split / f"ADE_{number}.png")
    rows = "".join(f"{i + 1}\t0.3\t1\t1\t1\t{label}, other\n" for i, label in enumerate(LABELS))
    (root / "objectInfo150.txt").write_text("Idx\tRatio\tTrain\tVal\tStuff\tName\n" + rows)


def make_voc(source: Path, root: Path) -> None:
    for number, (image, mask) in enumerate(pairs_of(source)):
        save(image, root / "JPEGImages" / f"2007_{number}.jpg")
        picture = Image.fromarray(mask, mode="P")
        picture.putpalette(list(range(256)) * 3)
        save(picture, root / "SegmentationClass" / f"2007_{number}.png")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("2007_0\n2007_1\n2007_2\n")
    (lists / "val.txt").write_text("2007_3\n")
    (root / "names.txt").write_text("\n".join(LABELS))


def make_camvid_numbers(source: Path, root: Path) -> None:
    for number, (image, mask) in enumerate(pairs_of(source)):
        split = "val" if number == 3 else "train"
        save(image, root / split / f"{number}.png")
        save(
            Image.fromarray(np.where(mask == 255, len(LABELS), mask).astype(np.uint8)),
            root / f"{split}annot" / f"{number}.png",
        )
    (root / "names.txt").write_text("\n".join(LABELS))


def make_camvid_colours(source: Path, root: Path) -> None:
    colours = np.zeros((256, 3), np.uint8)
    colours[:3] = [(128, 0, 0), (0, 128, 0), (0, 0, 128)]
    for number, (image, mask) in enumerate(pairs_of(source)):
        split = "val" if number == 3 else "train"
        save(image, root / split / f"{number}.png")
        save(Image.fromarray(colours[mask]), root / f"{split}_labels" / f"{number}_L.png")
    rows = "".join(f"{label},{r},{g},{b}\n" for label, (r, g, b) in zip(LABELS, colours, strict=False))
    (root / "class_dict.csv").write_text("name,r,g,b\n" + rows + "Void,0,0,0\n")


LAYOUTS = {
    "pairs": (make_pairs, "pairs", None),
    "ade20k": (make_ade20k, "ade20k", None),
    "voc": (make_voc, "voc", "names.txt"),
    "camvid numbers": (make_camvid_numbers, "camvid", "names.txt"),
    "camvid colours": (make_camvid_colours, "camvid", None),
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_each_layout_gives_the_same_pairs(source: Path, tmp_path: Path, kind: str) -> None:
    make, name, classes = LAYOUTS[kind]
    make(source, tmp_path)
    found = read_layout(tmp_path, None, tmp_path / classes if classes else None)
    assert (found.name, found.classes) == (name, LABELS)
    assert {split: len(pairs) for split, pairs in found.splits.items()} == {"train": 3, "val": 1}
    truth = [mask for _, mask in pairs_of(source)]
    for (image, mask), expected in zip(found.splits["train"] + found.splits["val"], truth, strict=True):
        assert image.is_file()
        assert (found.code.read(mask) == expected).all()
    assert read_layout(tmp_path, found.name, tmp_path / classes if classes else None).splits == found.splits


def test_published_names_where_a_set_is_published_without(source: Path, tmp_path: Path) -> None:
    make_voc(source, tmp_path / "voc")
    make_camvid_numbers(source, tmp_path / "camvid")
    voc, camvid = read_layout(tmp_path / "voc").classes, read_layout(tmp_path / "camvid").classes
    assert (len(voc), voc[0], voc[15], len(camvid), camvid[3]) == (21, "background", "person", 11, "road")


def test_one_folder_of_pairs_and_names_beside_or_above_it(source: Path, tmp_path: Path) -> None:
    make_pairs(source, tmp_path)
    part = read_layout(tmp_path / "val")
    assert (part.classes, list(part.splits)) == (LABELS, ["train"])
    (tmp_path / "classes.json").unlink()
    with pytest.raises(UserError, match="no class names"):
        read_layout(tmp_path / "val")
    assert read_layout(tmp_path / "val", known=LABELS).classes == LABELS


def test_mistakes_are_one_sentence(source: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no folder at"):
        read_layout(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="laid out like none of pairs, ade20k, voc, camvid"):
        read_layout(tmp_path / "empty")
    make_pairs(source, tmp_path / "set")
    (tmp_path / "set" / "train" / "masks" / "1.png").unlink()
    with pytest.raises(UserError, match=r"1\.jpg has no mask .*masks/1\.png; add it"):
        read_layout(tmp_path / "set")
    make_voc(source, tmp_path / "voc")
    (tmp_path / "voc" / "SegmentationClass" / "2007_1.png").unlink()
    with pytest.raises(UserError, match=r"2007_1\.png is missing, though the set's list names it"):
        read_layout(tmp_path / "voc")
    with pytest.raises(UserError, match=r"train\.txt is missing"):
        read_layout(tmp_path / "set", "voc")
