"""Results of any tracker are found and read; ours are written as two toolkits read them."""

from __future__ import annotations

import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgemim.edge.tracking.results import (
    ResultsFolder,
    archive_name,
    finished,
    opened,
    write_got10k,
    write_pytracking,
)
from edgemim.edge.tracking.sequences import SequenceError
from edgemim.errors import UserError

BOXES = np.array([[1.25, 2, 3, 4], [-1.75, 6.5, 7.9, 8]])


def write(path: Path, text: str = "1,2,3,4\n5,6,7,8\n") -> Path:
    """A text file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.mark.parametrize("file", ["a-1.txt", "a-1/a-1_001.txt", "lasot/a-1.txt", "baseline/a-1/a-1_001.txt"])
@pytest.mark.parametrize("text", ["1,2,3,4\n5,6,7,8\n", "1\t2\t3\t4\n5\t6\t7\t8\n", "1.0 2.00 3 4\n5 6 7 8"])
def test_every_layout_and_spelling(tmp_path: Path, file: str, text: str) -> None:
    write(tmp_path / file, text)
    stem = str(file.rpartition("/")[2]).replace("_001", "").replace(".txt", "")
    for beside in ("_time", "_object_presence_scores", "_confidence"):
        write((tmp_path / file).with_name(f"{stem}{beside}.txt"), "0.1\n0.2\n")
    write((tmp_path / file).with_name(f"{stem}_002.txt") if "/a-1/" in f"/{file}" else tmp_path / "notes.md")
    results = ResultsFolder(tmp_path, "ours")
    assert (len(results), results.name) == (1, "ours")
    assert results.read("a-1").tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_names_are_found_in_the_toolkits_spellings(tmp_path: Path) -> None:
    for name in ("Jogging.1", "Car4", "uav_bird1_1", "human4_2"):
        write(tmp_path / f"{name}.txt")
    results = ResultsFolder(tmp_path)
    for name in ("Jogging_1", "jogging-1", "car4", "bird1_1", "Human4.2"):
        assert results.find(name) is not None, name
    assert results.find("Human4") == results.find("human4_2")
    assert results.find("Car") is None and results.find("bird1") is None


def test_faults_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no results at"):
        ResultsFolder(tmp_path / "absent")
    with pytest.raises(UserError, match=r"holds no SEQUENCE\.txt"):
        ResultsFolder(tmp_path)
    write(tmp_path / "one" / "a.txt", "1,2,3\n")
    write(tmp_path / "one" / "b.txt", "")
    results = ResultsFolder(tmp_path / "one")
    with pytest.raises(SequenceError, match=r"sequence a: .*a\.txt, line 1: 3 numbers, expected 4"):
        results.read("a")
    with pytest.raises(SequenceError, match=r"b\.txt is empty"):
        results.read("b")
    with pytest.raises(SequenceError, match="sequence c: no results in"):
        results.read("c")
    write(tmp_path / "two" / "a.txt")
    with pytest.raises(UserError, match=r"two results of a, .*give one tracker's folder"):
        ResultsFolder(tmp_path)


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.xz", ".tar", ".zip"])
def test_archives_are_read_as_folders(tmp_path: Path, suffix: str) -> None:
    source = write(tmp_path / "ATOM" / "a.txt").parent
    write(source / "picture.jpg")
    archive = tmp_path / f"lasot_ATOM{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(archive, "w") as file:
            for path in source.iterdir():
                file.write(path, f"ATOM/{path.name}")
    else:
        with tarfile.open(archive, f"w:{suffix.rpartition('.')[2] if suffix.count('.') == 2 else ''}") as file:
            file.add(source, "ATOM")
    with opened(archive) as folder:
        assert folder.name == "ATOM" and [path.name for path in folder.iterdir()] == ["a.txt"]
        assert ResultsFolder(folder).read("a").shape == (2, 4)
    assert not folder.exists()
    assert archive_name(archive) == "lasot_ATOM" and archive_name(source) == "ATOM"


def test_archives_do_not_leave_their_folder_and_damaged_ones_are_named(tmp_path: Path) -> None:
    outside = write(tmp_path / "x.txt")
    with tarfile.open(tmp_path / "bad.tar", "w") as file:
        file.add(outside, "../escaped.txt")
        file.add(outside, "/absolute.txt")
        link = tarfile.TarInfo("link.txt")
        link.type, link.linkname = tarfile.SYMTYPE, str(outside)
        file.addfile(link)
    with opened(tmp_path / "bad.tar") as folder:
        assert [path.name for path in folder.rglob("*")] == ["absolute.txt"]
    assert not (tmp_path / "escaped.txt").exists()
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08\x00half")
    with pytest.raises(UserError, match=r"cut\.tar\.gz cannot be unpacked"), opened(tmp_path / "cut.tar.gz"):
        pass
    with opened(tmp_path) as folder:
        assert folder == tmp_path


def test_pytrackings_files(tmp_path: Path) -> None:
    write_pytracking(tmp_path, "a", BOXES, [0.5, 0.01], [1.0, 0.25])
    assert (tmp_path / "a.txt").read_text() == "1.2500\t2.0000\t3.0000\t4.0000\n-1.7500\t6.5000\t7.9000\t8.0000\n"
    assert np.loadtxt(tmp_path / "a_time.txt").tolist() == [0.5, 0.01]
    assert np.loadtxt(tmp_path / "a_object_presence_scores.txt").tolist() == [1.0, 0.25]
    assert ResultsFolder(tmp_path).read("a").tolist() == BOXES.tolist()
    write_pytracking(tmp_path, "b", BOXES, [0.5, 0.01], integers=True)
    assert (tmp_path / "b.txt").read_text() == "1\t2\t3\t4\n-1\t6\t7\t8\n"  # as astype(int) truncates
    assert not (tmp_path / "b_object_presence_scores.txt").exists()


def test_got10ks_files(tmp_path: Path) -> None:
    write_got10k(tmp_path, "a", BOXES, [0.5, 0.01])
    assert np.loadtxt(tmp_path / "a" / "a_001.txt", delimiter=",").tolist() == BOXES.tolist()
    assert np.loadtxt(tmp_path / "a" / "a_time.txt", delimiter=",").shape == (2,)
    assert ResultsFolder(tmp_path).read("a").tolist() == BOXES.tolist()


def test_finished_means_as_many_boxes_as_frames(tmp_path: Path) -> None:
    assert not finished(tmp_path, "a", 2)
    write_pytracking(tmp_path, "a", BOXES, [0.5, 0.01])
    assert finished(tmp_path, "a", 2) and not finished(tmp_path, "a", 3)
    (tmp_path / "a.txt").write_text("1,2,3,4\n1,2")
    assert not finished(tmp_path, "a", 2)
