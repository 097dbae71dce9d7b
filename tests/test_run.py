"""Run folders: the record of what was asked and came out, whose folder it is, and finding the newest."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path

import pytest

from edgemim.config import Config, load_yaml
from edgemim.errors import GateRefused, Interrupted, SavedOnSignal, UserError
from edgemim.run import (
    FolderLock,
    RunRecord,
    default_folder,
    find_run,
    installed_versions,
    prepare_folder,
    read_record,
    runs_newest_first,
    write_text,
)


class SmallConfig(Config):
    """A config for tests."""

    data: Path | None = None
    """Where."""
    epochs: float = 3.0
    """How long."""


CONFIG = SmallConfig(data=Path("photos"))


def test_a_record_from_start_to_end(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "run"
    with RunRecord("probe", folder, CONFIG) as record:
        assert read_record(folder)["status"] == "running"
        assert read_record(folder)["exit_code"] is None
        record.results["top1"] = 71.5
        record.warn("a file was odd")
    written = read_record(folder)
    assert (written["verb"], written["status"], written["exit_code"], written["error"]) == ("probe", "done", 0, None)
    assert written["results"] == {"top1": 71.5}
    assert written["warnings"] == ["a file was odd"]
    assert written["config"] == {"data": "photos", "epochs": 3.0}
    assert written["command"] == sys.argv
    assert written["seconds"] >= 0
    assert datetime.fromisoformat(written["started"]).tzinfo is not None
    assert written["versions"]["numpy"] == installed_versions()["numpy"]
    assert written["machine"]["cpu_count"] == os.cpu_count()
    assert load_yaml(folder / "config.yaml", SmallConfig) == CONFIG


@pytest.mark.parametrize(
    ("error", "status", "code", "text"),
    [
        (UserError("no images"), "failed", 2, "no images"),
        (GateRefused("slower"), "failed", 3, "slower"),
        (SavedOnSignal("saved at step 4"), "saved", 75, "saved at step 4"),
        (Interrupted("saved at step 4"), "saved", 130, "saved at step 4"),
        (KeyboardInterrupt(), "failed", 130, "KeyboardInterrupt"),
        (ZeroDivisionError("odd"), "failed", 1, "ZeroDivisionError: odd"),
    ],
)
def test_how_a_run_ended_is_recorded(tmp_path: Path, error: BaseException, status: str, code: int, text: str) -> None:
    def fail() -> None:
        with RunRecord("pretrain", tmp_path, CONFIG) as record:
            record.results["images"] = 7
            raise error

    with pytest.raises(type(error)):
        fail()
    written = read_record(tmp_path)
    assert (written["status"], written["exit_code"]) == (status, code)
    assert text in written["error"]
    assert written["results"] == {"images": 7}


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    with RunRecord("pretrain", tmp_path / "run", CONFIG, enabled=False) as record:
        record.warn("quiet")
    assert not (tmp_path / "run").exists()


def test_text_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "run.json"
    write_text(file, "old")
    write_text(file, "new")
    assert file.read_text() == "new"

    def full(self: Path, text: str) -> int:
        with open(self, "w") as half:
            half.write(text[:1])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(UserError, match=r"run\.json.*No space left on device.*--out"):
        write_text(file, "newer")
    assert file.read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]


def test_a_fresh_folder_is_made(tmp_path: Path) -> None:
    prepare_folder(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []


def old_run(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text('{"verb": "pretrain"}')
    (folder / "model").mkdir()
    (folder / "model" / "model.safetensors").write_bytes(b"precious")
    return folder


def test_an_old_result_is_neither_lost_nor_mixed(tmp_path: Path) -> None:
    run = old_run(tmp_path / "run")
    with pytest.raises(UserError, match=r"not empty; .*--resume.*--overwrite"):
        prepare_folder(run, resumable=True)
    with pytest.raises(UserError, match=r"not empty; give another --out, or --overwrite"):
        prepare_folder(run)
    prepare_folder(run, resume=True)
    prepare_folder(run, resume=True, overwrite=True)  # going on never deletes
    assert (run / "model" / "model.safetensors").read_bytes() == b"precious"
    prepare_folder(run, overwrite=True)
    assert list(run.iterdir()) == []


def test_a_folder_that_is_not_ours_is_never_emptied(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for options in ({}, {"overwrite": True}):
        with pytest.raises(UserError, match=r"not empty|not made by edgemim"):
            prepare_folder(tmp_path, **options)
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize("name", ["config.yaml", "manifest.json"])
def test_a_common_file_name_makes_no_folder_ours(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("{}")
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="not made by edgemim"):
        prepare_folder(tmp_path, overwrite=True)
    assert (tmp_path / "thesis.txt").exists()


def test_overwriting_does_not_follow_links(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "photo.jpg").write_bytes(b"x")
    run = old_run(tmp_path / "run")
    (run / "data").symlink_to(precious)
    prepare_folder(run, overwrite=True)
    assert (precious / "photo.jpg").exists()
    assert list(run.iterdir()) == []


def test_a_lock_file_alone_is_no_content(tmp_path: Path) -> None:
    lock = FolderLock(tmp_path)
    prepare_folder(tmp_path)
    old_run(tmp_path)
    prepare_folder(tmp_path, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    lock.release()


def test_a_file_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        prepare_folder(tmp_path / "file", overwrite=True)
    with pytest.raises(UserError, match=r"cannot write to .*file/run"):
        prepare_folder(tmp_path / "file" / "run")
    assert (tmp_path / "file").read_text() == "mine"


def test_a_folder_is_locked_against_other_processes(tmp_path: Path) -> None:
    program = f"from pathlib import Path; from edgemim.run import FolderLock; FolderLock(Path({str(tmp_path)!r}))"
    lock = FolderLock(tmp_path)
    with pytest.raises(UserError, match="another run is writing"):
        FolderLock(tmp_path)
    other = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "another run is writing" in other.stderr
    lock.release()
    # A process that ended, however, holds nothing.
    assert subprocess.run([sys.executable, "-c", program + "; import os; os._exit(9)"]).returncode == 9
    FolderLock(tmp_path).release()


def finished(root: Path, name: str, verb: str, age_s: float, status: str = "done") -> Path:
    folder = root / name
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(json.dumps({"verb": verb, "status": status}))
    moment = 1_700_000_000 - age_s
    os.utime(folder / "run.json", (moment, moment))
    return folder


def test_the_newest_finished_run_is_found_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    finished(tmp_path, "old", "pretrain", 300)
    newest = finished(tmp_path, "deep/er/new", "pretrain", 200)
    finished(tmp_path, "newer-but-other", "finetune", 100)
    finished(tmp_path, "newer-but-failed", "pretrain", 50, status="failed")
    finished(tmp_path, "newer-but-running", "pretrain", 40, status="running")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{half")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "run.json").write_text("[1]")
    assert find_run(None, "pretrain", tmp_path) == newest
    assert str(newest) in capsys.readouterr().out
    assert [path.name for path in runs_newest_first("pretrain", tmp_path)] == ["new", "old"]


def test_a_named_run_is_taken_as_it_is(tmp_path: Path) -> None:
    assert find_run(tmp_path, "pretrain") == tmp_path
    with pytest.raises(UserError, match=r"no run folder at .*absent"):
        find_run(tmp_path / "absent", "pretrain")


def test_without_a_run_the_remedy_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"run `edgemim pretrain` first"):
        find_run(None, "pretrain", tmp_path)


def test_records_that_cannot_be_read_are_empty(tmp_path: Path) -> None:
    assert read_record(tmp_path) == {}
    (tmp_path / "run.json").write_bytes(b"\xff\xff")
    assert read_record(tmp_path) == {}


def test_a_folder_without_out_carries_verb_and_time() -> None:
    assert re.fullmatch(r"runs/probe-\d{8}-\d{6}", str(default_folder("probe")))
