"""The folder's summary: counted by hand on small folders, duplicates and leaks found, balance by the loader's rule."""

import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from odd_files import GOOD, HUGE_PIXELS, ODD, UNREADABLE, noise, odd_folder

from edgemim.data.folders import scan_folder
from edgemim.data.inspection import FileFacts, FileLimits, inspect_file
from edgemim.data.survey import Contents, Findings, class_balance, list_contents
from edgemim.errors import UserError


def survey_of(root):
    contents = list_contents(root)
    findings = Findings(contents)
    for name in contents.images:
        findings.add(name, inspect_file(str(root / name), FileLimits(huge_pixels=HUGE_PIXELS)))
    return findings


def test_counts_and_findings_of_an_odd_folder(tmp_path):
    odd_folder(tmp_path / "files")
    findings = survey_of(tmp_path / "files")
    summary, details = findings.summary(), findings.details()
    assert json.loads(json.dumps([summary, details])) == [summary, details]
    assert summary["images"] == len(GOOD) + len(ODD) + len(UNREADABLE)
    assert summary["readable"] == len(GOOD) + len(ODD)
    assert {entry["path"] for entry in details["unreadable"]} == set(UNREADABLE)
    assert {entry["path"]: tuple(entry["kinds"]) for entry in details["odd"]} == ODD
    assert summary["odd"] == {
        "16-bit": 2,
        "tiny": 2,
        "animated": 1,
        "CMYK": 1,
        "huge": 1,
        "wrong suffix": 1,
        "EXIF-rotated": 1,
    }
    assert details["other_files"] == ["noext", "readme.txt"]
    # Zero-byte files are equal and yet no duplicates.
    assert details["duplicates"] == [["0.jpg", "really.png"]]
    assert summary["formats"] == {"JPEG": 6, "PNG": 4, "GIF": 1}
    assert sum(summary["modes"].values()) == summary["readable"]
    assert summary["modes"]["CMYK"] == 1


def test_sizes_are_those_of_the_readable_files(tmp_path):
    for number, (height, width) in enumerate([(10, 50), (20, 40), (30, 70), (40, 60)]):
        noise(height, width, number).save(tmp_path / f"{number}.png")
    (tmp_path / "bad.png").write_bytes(b"x")
    summary = survey_of(tmp_path).summary()
    assert summary["width_px"] == {"min": 40, "median": 55.0, "max": 70}
    assert summary["height_px"] == {"min": 10, "median": 25.0, "max": 40}
    assert summary["total_bytes"] == sum(path.stat().st_size for path in tmp_path.iterdir())
    assert summary["file_bytes"]["min"] == 1


def test_nothing_readable_still_gives_a_summary(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"x")
    summary = survey_of(tmp_path).summary()
    assert (summary["images"], summary["readable"], summary["width_px"]) == (1, 0, {})


def plant(root, names):
    """Pictures by name; equal numbers in `names` mean equal pictures."""
    for name, seed in names.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        noise(8, 8, seed).save(root / name)


def test_duplicates_leaks_and_conflicting_labels(tmp_path):
    pictures = {
        "train/a/1.png": 1,
        "train/a/again.png": 1,
        "train/b/2.png": 2,
        "train/b/3.png": 3,
        "val/a/2.png": 2,
        "val/b/3.png": 3,
        "val/b/4.png": 4,
    }
    plant(tmp_path, pictures)
    details = survey_of(tmp_path).details()
    leak, conflict = ["train/b/3.png", "val/b/3.png"], ["train/b/2.png", "val/a/2.png"]
    assert details["duplicates"] == [["train/a/1.png", "train/a/again.png"], conflict, leak]
    assert details["duplicates_across_splits"] == [conflict, leak]
    assert details["duplicates_across_classes"] == [conflict]
    summary = survey_of(tmp_path).summary()
    assert [summary[key] for key in ("duplicate_groups", "duplicate_files", "groups_across_splits")] == [3, 3, 2]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30))
def test_groups_are_a_partition_by_content(contents_of):
    names = [f"{place:02}.png" for place in range(len(contents_of))]
    findings = Findings(Contents(root=scan_root(), images=names))
    for name, content in zip(names, contents_of, strict=True):
        findings.add(name, FileFacts(1, bytes([content]), "PNG", "RGB", 1, 1))
    expected = [[name for name, c in zip(names, contents_of, strict=True) if c == content] for content in range(7)]
    assert sorted(findings.duplicates) == sorted(group for group in expected if len(group) > 1)


def scan_root():
    from pathlib import Path

    return Path("/nowhere")


@pytest.mark.parametrize(
    "names",
    [
        ("a/1.png", "a/2.png", "b/1.png"),
        ("a/1.png", "b/x/1.png", "b/y/z/2.png"),
        ("a/1.png", "b/1.png", "loose.png"),
        ("a/1.png", "a/2.png"),
        ("1.png",),
    ],
)
def test_classes_are_those_of_scan_folder(tmp_path, names):
    """What the check calls a class is what training will see."""
    plant(tmp_path, dict.fromkeys(names, 0))
    (tmp_path / "hollow").mkdir()
    balance = class_balance(list_contents(tmp_path))[""]
    folder = scan_folder(tmp_path, cache=False)
    counts = np.bincount(folder.labels, minlength=len(folder.classes)).tolist() if folder.classes else []
    assert balance["classes"] == dict(zip(folder.classes, counts, strict=True))
    assert balance["images"] == len(names)
    assert balance["empty"] == ["hollow"]


def test_balance_of_each_split_and_of_the_rest(tmp_path):
    names = ["train/a/1.png", "train/a/2.png", "train/a/3.png", "train/b/1.png", "val/a/1.png", "extra/1.png"]
    plant(tmp_path, dict.fromkeys(names, 0))
    (tmp_path / "val" / "b").mkdir()
    balance = class_balance(list_contents(tmp_path))
    assert balance["train"] == {"images": 4, "classes": {"a": 3, "b": 1}, "empty": [], "imbalance": 3.0}
    assert balance["val"] == {"images": 1, "classes": {}, "empty": ["b"], "imbalance": None}
    assert balance[""]["images"] == 1


def test_an_unreadable_folder_is_a_finding(tmp_path, monkeypatch):
    plant(tmp_path, {"a/1.png": 0, "b/1.png": 1})
    scandir = os.scandir

    def failing(path):
        if path.endswith(b"/b"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", failing)
    findings = survey_of(tmp_path)
    assert findings.details()["unreadable_folders"] == [{"path": "b", "reason": "Permission denied"}]
    assert findings.summary()["images"] == 1


def test_missing_and_empty_folders_are_refused(tmp_path):
    with pytest.raises(UserError, match=r"nope does not exist"):
        list_contents(tmp_path / "nope")
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"file is a file"):
        list_contents(tmp_path / "file")
    (tmp_path / "empty" / "class").mkdir(parents=True)
    with pytest.raises(UserError, match=r"no images in .*empty"):
        list_contents(tmp_path / "empty")
