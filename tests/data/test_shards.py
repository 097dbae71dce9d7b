"""Tar shards: listed once, read at their offsets by any process, noticed when they change."""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest
from packed_files import samples_of, write_tar

from edgemim.data import shards
from edgemim.data.shards import open_shards
from edgemim.edge.images import ImageError
from edgemim.errors import UserError

OLD = (1_600_000_000, 1_600_000_000)


def sixteen(folder: Path, label: bytes = b"1") -> list[Path]:
    """Eight tar files of two images each, old enough to be cached."""
    files = []
    for number in range(8):
        entries = [
            (f"{number}{c}{s}", data) for c in "ab" for s, data in ((".jpg", f"{number}{c}".encode()), (".cls", label))
        ]
        files.append(write_tar(folder / f"{number}.tar", entries))
        os.utime(files[-1], OLD)
    return files


@pytest.fixture(autouse=True)
def cache_home(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    home = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("XDG_CACHE_HOME", str(home))
    return home


def test_images_in_their_order(tmp_path: Path) -> None:
    images = open_shards(tmp_path, sixteen(tmp_path))
    assert [images.read(i) for i in range(16)] == [f"{n}{c}".encode() for n in range(8) for c in "ab"]
    assert images.name(5) == f"{tmp_path}/2.tar:2b.jpg"


def test_an_unchanged_list_is_not_made_again(tmp_path: Path, cache_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = sixteen(tmp_path)
    first = open_shards(tmp_path, files)
    assert len(list(cache_home.rglob("*.index"))) == 1

    def none(path: Path) -> list:
        raise AssertionError(f"{path} was listed again")

    monkeypatch.setattr(shards, "list_members", none)
    second = open_shards(tmp_path, files)
    assert second.fingerprint == first.fingerprint
    assert [second.read(i) for i in range(16)] == [first.read(i) for i in range(16)]
    assert len(pickle.dumps(second)) < 2000
    with pytest.raises(AssertionError):
        open_shards(tmp_path, files[:7])
    os.utime(files[3])
    with pytest.raises(AssertionError):
        open_shards(tmp_path, files)


def test_a_young_file_is_not_cached(tmp_path: Path, cache_home: Path) -> None:
    files = sixteen(tmp_path)
    os.utime(files[0])
    open_shards(tmp_path, files)
    assert not list(cache_home.rglob("*.index"))
    os.utime(files[0], OLD)
    open_shards(tmp_path, files, cache=False)
    assert not list(cache_home.rglob("*.index"))


def test_files_are_opened_as_needed_and_not_too_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "_MAX_OPEN", 3)
    before = len(os.listdir("/proc/self/fd"))
    images = open_shards(tmp_path, sixteen(tmp_path), cache=False)
    assert [images.read(i) for i in (0, 15, 7, 3, 11, 0, 15)] == [b"0a", b"7b", b"3b", b"1b", b"5b", b"0a", b"7b"]
    assert len(os.listdir("/proc/self/fd")) <= before + 3
    del images
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_forked_reader_reads_its_own(tmp_path: Path) -> None:
    images = open_shards(tmp_path, sixteen(tmp_path))
    images.read(4)
    pid = os.fork()
    if not pid:
        os._exit(0 if [images.read(i) for i in range(16)][5] == b"2b" else 1)
    assert [images.read(i) for i in (4, 5)] == [b"2a", b"2b"]
    assert os.waitpid(pid, 0)[1] == 0


def test_a_file_that_changes_under_a_run_is_named(tmp_path: Path) -> None:
    files = sixteen(tmp_path)
    images = open_shards(tmp_path, files)
    write_tar(files[2], [("other.jpg", b"x" * 3000)])
    with pytest.raises(UserError, match=r"2\.tar has changed since it was listed"):
        images.read(4)
    os.truncate(files[0], 500)
    kept = pickle.loads(pickle.dumps(images))
    kept._open._descriptors[str(files[0])] = os.open(files[0], os.O_RDONLY)  # opened before it was cut
    with pytest.raises(ImageError, match=r"0\.tar:0a\.jpg: 0 of 2 bytes are there"):
        kept.read(0)


def test_numbers_take_names_given_elsewhere(tmp_path: Path) -> None:
    images = open_shards(tmp_path, sixteen(tmp_path, b"2"))
    assert images.classes == ("2",)
    assert images.with_classes(("a", "b", "c")).labels.tolist() == [2] * 16
    assert images.with_classes(("2", "b", "c")).labels.tolist() == [0] * 16
    with pytest.raises(
        UserError, match=r"class '2', which is not one of the 2 known classes; .*\(first: .*0\.tar:0a\.jpg\)"
    ):
        images.with_classes(("a", "b"))


def test_names_are_never_taken_for_numbers(photos: Path, tmp_path: Path) -> None:
    images = open_shards(tmp_path, [write_tar(tmp_path / "s.tar", samples_of(photos, "name"))])
    with pytest.raises(UserError, match="class 'coffee', which is not one of"):
        images.with_classes(("astronaut", "chelsea", "tea", "rocket"))


def test_an_image_without_a_label_is_named(photos: Path, tmp_path: Path) -> None:
    entries = [entry for entry in samples_of(photos) if entry[0] != "chelsea-04.cls"]
    images = open_shards(tmp_path, [write_tar(tmp_path / "s.tar", entries)])
    assert images.classes == () and set(images.labels.tolist()) == {-1}
    with pytest.raises(UserError, match=r"s\.tar:chelsea-04\.png has no label; give each image KEY\.jpg a KEY\.cls"):
        images.with_classes(("a", "b"))


def test_shards_without_images(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "s.tar", [("ILSVRC.01.jpg", b"x"), ("k.txt", b"x")])
    with pytest.raises(UserError, match=r"no images in .*s\.tar: tar files hold KEY\.jpg .*KEY without a dot"):
        open_shards(path, [path])
    with pytest.raises(UserError, match=r"cannot read .*gone\.tar: No such file"):
        open_shards(path, [tmp_path / "gone.tar"])


@pytest.mark.parametrize("workers", [0, 1])
def test_a_change_under_the_readers_is_one_sentence(photos: Path, tmp_path: Path, workers: int) -> None:
    """From a worker, too, whose errors torch would bury in a traceback."""
    pytest.importorskip("torch")
    from edgemim.data.loader import build_loader, eval_loader
    from edgemim.data.transforms import PretrainTransform
    from edgemim.edge.images import Preprocessing

    path = write_tar(tmp_path / "s.tar", samples_of(photos))
    images = open_shards(path, [path])
    os.utime(path, OLD)
    for batches in (
        build_loader(images, PretrainTransform().build(16), seed=0, batch_size=8, total_steps=2, workers=workers),
        eval_loader(images, Preprocessing(image_size=16), batch_size=8, workers=workers),
    ):
        with pytest.raises(UserError, match=r"^\S*s\.tar has changed since it was listed; start again$"):
            list(batches)
