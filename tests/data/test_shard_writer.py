"""Writing shards: the set's images and labels come back, the files are the same each time, whole or not there."""

from __future__ import annotations

import json
import os
import tarfile
from pathlib import Path

import pytest
from packed_files import dataset_of, samples_of, write_table, write_tar

from edgemim.data import shard_writer
from edgemim.data.folders import scan_folder
from edgemim.data.image_set import ImageSet
from edgemim.data.shard_writer import ShardWriter, sets_to_write
from edgemim.data.sources import find_sources
from edgemim.errors import UserError


def written(folder: Path, images: ImageSet, per_shard: int = 50) -> Path:
    folder.mkdir()
    writer = ShardWriter(folder, {"": images}, per_shard)
    writer.begin()
    for shard in writer.missing():
        writer.write(*shard)
    return folder


def same(one: ImageSet, other: ImageSet) -> bool:
    contents = [[images.read(i) for i in range(len(images))] for images in (one, other)]
    return contents[0] == contents[1] and (one.classes, one.labels.tolist()) == (other.classes, other.labels.tolist())


def test_every_form_comes_back(photos: Path, tmp_path: Path) -> None:
    reference = scan_folder(photos)
    (tmp_path / "photos").symlink_to(photos)
    forms = [
        photos,
        write_table(tmp_path / "photos", tmp_path / "t.csv"),
        write_tar(tmp_path / "t.tar", samples_of(photos, "name")),
    ]
    if pytest.importorskip("datasets"):
        dataset_of(photos).to_parquet(tmp_path / "t.parquet")
        forms.append(tmp_path / "t.parquet")
    for number, form in enumerate(forms):
        folder = written(tmp_path / str(number), find_sources(form).train.open())
        assert sorted(path.name for path in folder.glob("*.tar")) == [f"all-00000{shard}.tar" for shard in range(3)]
        assert same(find_sources(folder).train.open(), reference)


def test_the_files_are_the_same_each_time(photos: Path, tmp_path: Path) -> None:
    folders = [written(tmp_path / name, scan_folder(photos, cache=False)) for name in ("one", "two")]
    for name in ("all-000000.tar", "all-000001.tar", "all-000002.tar", "classes.json", "shards.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_pythons_own_tarfile_reads_what_is_written(photos: Path, tmp_path: Path) -> None:
    """WebDataset's layout: members of a key stand together, the class is a number."""
    folder = written(tmp_path / "shards", scan_folder(photos), 1000)
    with tarfile.open(folder / "all-000000.tar") as archive:
        entries = archive.getmembers()
        assert len(entries) == 240
        for number, (image, label) in enumerate(zip(entries[::2], entries[1::2], strict=True)):
            key, _, suffix = image.name.partition(".")
            assert (key[:8], suffix in ("png", "jpg"), label.name) == (f"{number:08d}", True, f"{key}.cls")
            assert (image.mtime, image.uid, image.mode) == (0, 0, 0o644)
        assert archive.extractfile(entries[1]).read() == b"0"  # pyright: ignore[reportOptionalMemberAccess]
        assert archive.extractfile(entries[239]).read() == b"3"  # pyright: ignore[reportOptionalMemberAccess]


def test_names_that_try_to_be_something_else(tmp_path: Path) -> None:
    rude = ["../../x.jpg", "a b.c.d.PNG", "é\n<b>.jpeg", "x" * 240 + ".png"]
    for number, name in enumerate(rude):
        path = tmp_path / "in" / str(number % 2) / name.replace("../", "_")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes([number]))
    images = scan_folder(tmp_path / "in")
    folder = written(tmp_path / "out", images)
    with tarfile.open(folder / "all-000000.tar") as archive:
        assert all(name.isascii() and "/" not in name and len(name) < 80 for name in archive.getnames())
    assert same(find_sources(folder).train.open(), images)


def test_an_interrupted_writing_goes_on(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = scan_folder(photos)
    whole = written(tmp_path / "whole", images)
    folder = tmp_path / "part"
    folder.mkdir()
    writer = ShardWriter(folder, {"": images}, 50)
    writer.begin()
    writer.write("", 1)
    monkeypatch.setattr(
        shard_writer.os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    with pytest.raises(
        UserError, match=r"all-000000\.tar: No space left on device; free space, then go on with --resume"
    ):
        writer.write("", 0)
    assert sorted(path.name for path in folder.iterdir()) == ["all-000001.tar", "classes.json", "shards.json"]
    monkeypatch.undo()
    again = ShardWriter(folder, {"": images}, 50)
    again.begin(resume=True)
    assert again.missing() == [("", 0), ("", 2)]
    for shard in again.missing():
        again.write(*shard)
    assert [path.read_bytes() for path in sorted(folder.iterdir())] == [
        path.read_bytes() for path in sorted(whole.iterdir())
    ]


def test_another_plan_is_refused(photos: Path, tmp_path: Path) -> None:
    images = scan_folder(photos)
    folder = written(tmp_path / "shards", images)
    for other in (ShardWriter(folder, {"": images}, 51), ShardWriter(folder, {"": images.select(range(9))}, 50)):
        with pytest.raises(UserError, match="holds shards of other images or of another --per-shard"):
            other.begin(resume=True)
    (folder / "shards.json").write_text("{")
    with pytest.raises(UserError, match="holds shards of other images"):
        ShardWriter(folder, {"": images}, 50).begin(resume=True)
    (folder / "shards.json").unlink()
    with pytest.raises(UserError, match=r"holds no shards to go on with \(shards\.json is missing\)"):
        ShardWriter(folder, {"": images}, 50).begin(resume=True)


def test_an_image_that_is_gone_is_named(photos: Path, tmp_path: Path) -> None:
    for name in ("a/1.png", "b/2.png"):
        (tmp_path / "in" / name).parent.mkdir(parents=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    images = scan_folder(tmp_path / "in")
    (tmp_path / "in" / "b" / "2.png").unlink()
    with pytest.raises(UserError, match=r"image .*b/2\.png: does not exist; remove it from the set"):
        written(tmp_path / "out", images)
    assert not list((tmp_path / "out").glob("*.tar*"))


def test_splits_get_one_numbering(photos: Path, tmp_path: Path) -> None:
    for split, names in {"train": ("x", "y", "z"), "val": ("y",), "test": ("z", "x")}.items():
        for name in names:
            path = tmp_path / "in" / split / name / f"{split}.png"
            path.parent.mkdir(parents=True)
            path.write_bytes(f"{split}{name}".encode())
    sets = {split: source.open() for split, source in find_sources(tmp_path / "in").splits.items()}
    found = sets_to_write(sets)
    assert {split: (images.classes, images.labels.tolist()) for split, images in found.items()} == {
        "train": (("x", "y", "z"), [0, 1, 2]),
        "val": (("x", "y", "z"), [1]),
        "test": (("x", "y", "z"), [0, 2]),
    }
    assert list(sets_to_write({"train": sets["train"]})) == [""]
    with pytest.raises(UserError, match="no split 'train' among val, test"):
        sets_to_write({"val": sets["val"], "test": sets["test"]})
    os.rename(tmp_path / "in" / "test" / "z", tmp_path / "in" / "test" / "other")
    sets["test"] = scan_folder(tmp_path / "in" / "test")
    with pytest.raises(UserError, match="class 'other', which is not one of the 3 known classes"):
        sets_to_write(sets)
    (tmp_path / "in" / "test" / "loose.png").write_bytes(b"x")
    sets["test"] = scan_folder(tmp_path / "in" / "test")
    assert sets_to_write(sets)["test"].classes == ()


def test_the_plan_is_readable(photos: Path, tmp_path: Path) -> None:
    images = scan_folder(photos)
    plan = json.loads((written(tmp_path / "out", images) / "shards.json").read_text())
    assert plan["splits"] == {"": {"images": 120, "classes": 4, "fingerprint": images.fingerprint}}
