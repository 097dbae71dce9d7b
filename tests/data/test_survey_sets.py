"""The check of packed sets: the same summary as of the folder they come from, faults named where they lie."""

from __future__ import annotations

from pathlib import Path

import pytest
from odd_files import HUGE_PIXELS, UNREADABLE, odd_folder
from packed_files import dataset_of, samples_of, write_table, write_tar

from edgemim.data.inspection import FileLimits
from edgemim.data.survey import Findings
from edgemim.data.survey_sets import inspect_contents, survey_contents
from edgemim.errors import UserError

LIMITS = FileLimits(huge_pixels=HUGE_PIXELS)


def survey_of(path: Path, workers: int = 0) -> Findings:
    contents = survey_contents(path)
    findings = Findings(contents)
    for name, facts in zip(contents.images, inspect_contents(contents, LIMITS, workers), strict=True):
        findings.add(name, facts)
    return findings


@pytest.mark.parametrize("form", ["csv", "tar", "hf"])
def test_the_summary_is_the_folders(photos: Path, tmp_path: Path, form: str) -> None:
    if form == "csv":
        (tmp_path / "photos").symlink_to(photos)
        packed = write_table(tmp_path / "photos", tmp_path / "t.csv")
    elif form == "tar":
        packed = write_tar(tmp_path / "t.tar", samples_of(photos, "name"))
    else:
        pytest.importorskip("datasets")
        packed = tmp_path / "t.parquet"
        dataset_of(photos).to_parquet(packed)
    expected = survey_of(photos).summary()
    assert survey_of(packed).summary() == survey_of(packed, workers=2).summary() == expected


def test_faults_are_named_where_they_lie(tmp_path: Path) -> None:
    folder = tmp_path / "set" / "x"
    odd_folder(folder)
    for path in folder.iterdir():
        if not path.is_file():
            path.unlink()  # a tar file of plain files has none such
    tar = write_tar(tmp_path / "t.tar", samples_of(folder.parent, "none"))
    folder_findings, findings = survey_of(folder), survey_of(tar)
    found = {entry["path"].removeprefix("t.tar:x-"): entry["reason"] for entry in findings.details()["unreadable"]}
    assert found == {entry["path"]: entry["reason"] for entry in folder_findings.details()["unreadable"]}
    assert set(found) == {name for name in UNREADABLE if (folder / name).exists()}
    assert findings.summary()["odd"] == folder_findings.summary()["odd"]
    (balance,) = findings.summary()["splits"].values()
    assert "has no label; give each image KEY.jpg a KEY.cls" in balance["note"]


def test_leaks_between_splits_and_classes_of_a_table(photos: Path, tmp_path: Path) -> None:
    names = sorted(photos.rglob("*.png"))[:4]
    rows = [f"{names[0]},cat,train", f"{names[1]},cat,train", f"{names[0]},dog,train", f"{names[1]},cat,val"]
    (tmp_path / "t.csv").write_text("\n".join(["path,label,split", *rows, f"{names[2]},dog,val"]))
    findings = survey_of(tmp_path / "t.csv")
    assert findings.summary()["splits"] == {
        "train": {"images": 3, "classes": {"cat": 2, "dog": 1}, "empty": [], "imbalance": 2.0},
        "val": {"images": 2, "classes": {"cat": 1, "dog": 1}, "empty": [], "imbalance": 1.0},
    }
    assert len(findings.details()["duplicates"]) == 2


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nope does not exist"):
        survey_contents(tmp_path / "nope")
    (tmp_path / "t.csv").write_text("path,label\nnone.png,x\n")
    with pytest.raises(UserError, match=r"t\.csv, line 2: no file"):
        survey_contents(tmp_path / "t.csv")
