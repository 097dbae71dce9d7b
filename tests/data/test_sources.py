"""One opener: the same images and labels come out of a folder, a CSV file, tar shards and a Hugging Face dataset."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
from packed_files import dataset_of, samples_of, write_table, write_tar
from PIL import Image

from edgemim.data.image_set import ImageSet
from edgemim.data.sources import find_sources
from edgemim.edge.images import load_image
from edgemim.errors import UserError

NAMES = ("astronaut", "chelsea", "coffee", "rocket")


@pytest.fixture(scope="module")
def packed(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The photos in every form that is known."""
    pytest.importorskip("datasets")
    root = tmp_path_factory.mktemp("packed")
    shutil.copytree(photos, root / "folder")
    numbers, names, json_labels = (samples_of(photos, label) for label in ("cls", "name", "json"))
    write_tar(root / "numbers" / "a-000.tar", numbers[:120])
    write_tar(root / "numbers" / "a-001.tar", numbers[120:])
    (root / "numbers" / "classes.json").write_text(json.dumps(NAMES))
    write_tar(root / "names.tar", names)
    write_tar(root / "json.tar", json_labels)
    dataset = dataset_of(photos)
    dataset.save_to_disk(root / "saved", num_shards=3)
    dataset.to_parquet(root / "one.parquet")
    (root / "parquet" / "data").mkdir(parents=True)
    for number in range(2):
        part = dataset.shard(2, number, contiguous=True)
        part.to_parquet(root / "parquet" / "data" / f"all-0000{number}-of-00002.parquet", batch_size=7)
    dataset_of(photos, "names").save_to_disk(root / "text")
    return {
        "folder": root / "folder",
        "csv": write_table(root / "folder", root / "table.csv"),
        "bare csv": write_table(root / "folder", root / "bare.csv", header=False),
        "tar numbers": root / "numbers",
        "tar names": root / "names.tar",
        "tar json": root / "json.tar",
        "hf saved": root / "saved",
        "hf file": root / "one.parquet",
        "hf parquet": root / "parquet",
        "hf text": root / "text",
    }


FORMS = [
    "csv", "bare csv", "tar numbers", "tar names", "tar json", "hf saved", "hf file", "hf parquet", "hf text"
]  # fmt: skip


def opened(path: Path) -> ImageSet:
    return find_sources(path).train.open()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_folders_images_and_labels(packed: dict[str, Path], form: str) -> None:
    reference, images = opened(packed["folder"]), opened(packed[form])
    assert images.classes == reference.classes == NAMES
    assert len(images) == 120
    assert images.labels.dtype == np.int32 and images.labels.tolist() == reference.labels.tolist()
    for i in (0, 1, 59, 60, 61, 119):
        assert images.read(i) == reference.read(i)
        assert np.array_equal(images.image(i), load_image(reference.path(i)))  # pyright: ignore


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_cut_down_and_travels(packed: dict[str, Path], form: str) -> None:
    images = opened(packed[form])
    part = images.select([100, 3, 50]).select([0, 2])
    assert part.labels.tolist() == images.labels[[100, 50]].tolist()
    assert [part.read(0), part.name(1)] == [images.read(100), images.name(50)]
    copy = pickle.loads(pickle.dumps(part))
    assert [copy.read(0), copy.name(1)] == [images.read(100), images.name(50)]
    assert copy.fingerprint == part.fingerprint != images.fingerprint
    assert opened(packed[form]).fingerprint == images.fingerprint
    assert len({images.name(i) for i in range(120)}) == 120


@pytest.mark.parametrize("form", ["folder", *FORMS])
def test_a_moved_set_is_the_same_and_a_shorter_one_is_not(packed: dict[str, Path], form: str, tmp_path: Path) -> None:
    source = packed[form]
    target = tmp_path / source.name
    if "csv" in form:
        shutil.copytree(packed["folder"], tmp_path / "folder")
    (shutil.copytree if source.is_dir() else shutil.copy)(source, target)
    before = opened(source).fingerprint
    assert opened(target).fingerprint == before
    if form in ("csv", "bare csv"):
        target.write_text("\n".join(target.read_text().splitlines()[:-1]))
    elif form.startswith("tar"):
        tar = next(target.glob("*1.tar")) if target.is_dir() else target
        write_tar(tar, samples_of(packed["folder"], "name" if "names" in form else "cls")[4:])
    elif form == "folder":
        next(target.rglob("*.png")).unlink()
    else:
        data = dataset_of(packed["folder"]).select(range(119))
        data.to_parquet(target) if target.is_file() else data.to_parquet(target / "x.parquet")
        target = target if target.is_file() else target / "x.parquet"
    assert opened(target).fingerprint != before


def test_splits_of_every_form(packed: dict[str, Path], tmp_path: Path) -> None:
    """A third of the images is "validation", wherever that is said."""
    import datasets

    folder = packed["folder"]
    names = {0: "train", 1: "train", 2: "validation"}
    table = write_table(folder, folder.parent / "splits.csv", split=names)
    entries = samples_of(folder, "name")
    kept = [entry for number, entry in enumerate(entries) if number // 2 % 3 < 2]
    held = [entry for number, entry in enumerate(entries) if number // 2 % 3 == 2]
    for base in (tmp_path / "named" / "set-train-000.tar", tmp_path / "nested" / "train" / "0.tar"):
        write_tar(base, kept)
    write_tar(tmp_path / "named" / "set-val-000.tar", held)
    write_tar(tmp_path / "nested" / "valid" / "0.tar", held)
    data = dataset_of(folder)
    chosen = {split: [i for i in range(120) if names[i % 3] == split] for split in ("train", "validation")}
    parts = datasets.DatasetDict({split: data.select(rows) for split, rows in chosen.items()})
    parts.save_to_disk(tmp_path / "saved")
    (tmp_path / "hub" / "data").mkdir(parents=True)
    for split, part in parts.items():
        part.to_parquet(tmp_path / "hub" / "data" / f"{split}-00000-of-00001.parquet")
    found = []
    for path in (table, tmp_path / "named", tmp_path / "nested", tmp_path / "saved", tmp_path / "hub"):
        sources = find_sources(path)
        assert set(sources.splits) == {"train", "val"}
        assert sources.held_out is sources.measured
        train, val = sources.train.open(), sources.measured.open()
        assert (len(train), len(val)) == (80, 40)
        found.append(([train.read(i) for i in (0, 40, 79)], [val.read(i) for i in (0, 20, 39)], train.labels.tolist()))
    assert all(part == found[0] for part in found)


def test_a_folder_of_images_with_its_archive_beside_is_a_folder(packed: dict[str, Path], tmp_path: Path) -> None:
    shutil.copytree(packed["folder"], tmp_path / "set")
    shutil.copytree(packed["folder"], tmp_path / "one" / "data")
    shutil.copytree(packed["folder"] / "coffee", tmp_path / "flat")
    for name, count in (("set", 120), ("one", 120), ("flat", 30)):
        shutil.copy(packed["tar names"], tmp_path / name / "original.tar")
        shutil.copy(packed["hf file"], tmp_path / name / "original.parquet")
        assert find_sources(tmp_path / name).train.kind == "folder"
        assert len(opened(tmp_path / name)) == count


def test_a_split_without_training_images_is_named(packed: dict[str, Path], tmp_path: Path) -> None:
    folder = packed["folder"]
    table = write_table(folder, folder.parent / "halves.csv", split={0: "val", 1: "test"})
    with pytest.raises(UserError, match="no split 'train', only val, test"):
        opened(table)
    assert len(find_sources(table).measured.open()) == 60


def test_what_is_nothing_of_all_this(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder at .*nowhere; give the folder that holds your images, or a file"):
        find_sources(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"no file at .*nowhere\.csv; give"):
        find_sources(tmp_path / "nowhere.csv")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(
        UserError, match=r"a\.zip is a file, but not \.csv, \.tar, \.parquet, \.arrow; give one of these"
    ):
        find_sources(tmp_path / "a.zip")


@pytest.mark.parametrize("form", ["csv", "tar names", "hf file"])
def test_a_broken_image_is_named_where_it_lies(packed: dict[str, Path], form: str, tmp_path: Path) -> None:
    """The decoder is one for all: turned by EXIF, of any colour mode, and broken alike."""
    import datasets

    folder = tmp_path / "odd" / "x"
    folder.mkdir(parents=True)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(folder / "0turned.jpg", exif=exif)
    picture.convert("CMYK").save(folder / "1inks.jpg")
    (folder / "2cut.jpg").write_bytes((folder / "0turned.jpg").read_bytes()[:300])
    (folder / "3empty.png").write_bytes(b"")
    if form == "csv":
        images, names = opened(write_table(folder, tmp_path / "t.csv")), ["2cut.jpg", "3empty.png"]
    elif form == "tar names":
        tar = write_tar(tmp_path / "t.tar", samples_of(folder.parent, "name"))
        images, names = opened(tar), [f"{tar}:x-2cut.jpg", f"{tar}:x-3empty.png"]
    else:
        dataset = dataset_of(folder)
        assert isinstance(dataset, datasets.Dataset)
        dataset.to_parquet(tmp_path / "t.parquet")
        images, names = opened(tmp_path / "t.parquet"), ["t.parquet:row 2", "t.parquet:row 3"]
    for i, name in enumerate(("0turned.jpg", "1inks.jpg")):
        assert np.array_equal(images.image(i), load_image(folder / name))
    assert images.image(0).shape == (8, 6, 3)
    for i, name in enumerate(names, start=2):
        with pytest.raises(UserError, match="empty" if i == 3 else "image") as caught:
            images.image(i)
        assert name in str(caught.value)


def test_dictionaries_of_splits(photos: Path, tmp_path: Path) -> None:
    """Training images alone are a set of their own; a split of an unknown name is named."""
    datasets = pytest.importorskip("datasets")
    data = dataset_of(photos)
    datasets.DatasetDict({"train": data}).save_to_disk(tmp_path / "one")
    sources = find_sources(tmp_path / "one")
    assert sources.held_out is None
    assert len(sources.train.open()) == len(sources.measured.open()) == 120
    datasets.DatasetDict({"train": data, "extra": data}).save_to_disk(tmp_path / "odd")
    with pytest.raises(UserError, match=r"has a split 'extra'; known are train, training, val.*: give .*odd/extra"):
        find_sources(tmp_path / "odd")
    assert len(find_sources(tmp_path / "odd" / "extra").train.open()) == 120
