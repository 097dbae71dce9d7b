"""`edgemim data check`: the report, its files, exit codes, names that try to be something else; the folder untouched."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgemim.cli import main
from edgemim.commands.data import DataCheckConfig, data_check, printable

NASTY = ("[bold red]x", "a\nb", "\x1b[31mred", "<script>alert(1)", os.fsdecode(b"caf\xe9"), "x..x", "x\u202ey")


@pytest.fixture
def checked(tmp_path, monkeypatch):
    """A folder with nasty class names, one copy, one unreadable file; the working directory is beside it."""
    rng = np.random.default_rng(0)
    root = tmp_path / "photos of mine"
    for name in NASTY:
        (root / name).mkdir(parents=True)
        for number in range(2):
            Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(root / name / f"{number}.png")
    (root / "x..x" / "copy.png").write_bytes((root / "x..x" / "0.png").read_bytes())
    (root / "x..x" / "bad.png").write_bytes(b"nothing")
    (root / "hollow").mkdir()
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return root


def snapshot(root):
    """Every path below with its times, size and content."""
    found = {}
    for directory, folders, files in os.walk(root):
        for name in [*folders, *files, "."]:
            path = Path(directory, name)
            status = path.lstat()
            content = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
            found[str(path)] = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_mode, content)
    return found


def test_the_check_reports_and_touches_nothing(checked, capsys):
    before = snapshot(checked)
    summary = data_check(DataCheckConfig(folder=checked, workers=0))
    assert snapshot(checked) == before
    assert (summary["images"], summary["unreadable"], summary["duplicate_files"]) == (16, 1, 1)
    record = json.loads(Path("runs/data-check/photos of mine/run.json").read_text())
    assert (record["verb"], record["status"], record["exit_code"]) == ("data check", "done", 0)
    assert record["results"] == summary
    findings = json.loads(Path("runs/data-check/photos of mine/findings.json").read_text())
    assert findings["unreadable"] == [{"path": "x..x/bad.png", "reason": findings["unreadable"][0]["reason"]}]
    assert findings["duplicates"] == [["x..x/0.png", "x..x/copy.png"]]
    assert set(summary["splits"][""]["classes"]) == set(NASTY)
    output = capsys.readouterr().out
    for line in (
        "16 images",
        "15 readable, 1 unreadable",
        "more than 1 % are unreadable",
        "x..x/bad.png: is not an image",
        "x..x/0.png = x..x/copy.png",
        "empty classes: 1\n  hollow",
        "the largest 2.0 times the smallest",
        "next: edgemim pretrain --data '",
    ):
        assert line in output, output


def test_names_reach_the_terminal_as_text(checked, capsys):
    data_check(DataCheckConfig(folder=checked, workers=0))
    output = capsys.readouterr().out
    assert "\x1b" not in output
    assert "\u202e" not in output
    for shown in ("[bold red]x", r"a\nb", r"\x1b[31mred", "<script>alert(1)", r"caf\udce9", r"x\u202ey"):
        assert shown in output
    output.encode("utf-8")


@pytest.mark.parametrize(
    ("name", "shown"),
    [("plain ü", "plain ü"), ("a\nb\t", r"a\nb\t"), ("\x1b]0;x\x07", r"\x1b]0;x\x07"), ("\udc80", r"\udc80"), ("", "")],
)
def test_printable(name, shown):
    assert printable(name) == shown


def test_a_second_check_replaces_the_first(checked):
    data_check(DataCheckConfig(folder=checked, workers=0))
    (checked / "x..x" / "bad.png").unlink()
    assert data_check(DataCheckConfig(folder=checked, workers=0))["unreadable"] == 0
    assert json.loads(Path("runs/data-check/photos of mine/findings.json").read_text())["unreadable"] == []


def test_out_is_never_lost_unasked(checked, tmp_path, capsys):
    out = tmp_path / "kept"
    out.mkdir()
    (out / "thesis.txt").write_text("years of work")
    for extra in ([], ["--overwrite"]):
        assert main(["data", "check", str(checked), "--out", str(out), *extra]) == 2
        assert [path.name for path in out.iterdir()] == ["thesis.txt"]
    assert main(["data", "check", str(checked), "--out", str(tmp_path / "new"), "--workers", "0"]) == 0
    assert (tmp_path / "new" / "findings.json").is_file()
    assert "kept" in capsys.readouterr().err


def test_results_never_go_into_the_checked_folder(checked, monkeypatch, capsys):
    before = snapshot(checked)
    assert main(["data", "check", str(checked), "--out", str(checked / "x..x" / "out")]) == 2
    monkeypatch.chdir(checked)
    assert main(["data", "check", "."]) == 2
    assert snapshot(checked) == before
    assert capsys.readouterr().err.count("--out outside") == 2


def test_missing_empty_and_unnamed_folders_exit_2(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty" / "class").mkdir(parents=True)
    for words, message in (
        ([], "name the folder"),
        (["nope"], "nope does not exist"),
        (["empty"], "no images in empty"),
    ):
        assert main(["data", "check", *words]) == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_typo_in_a_flag_exits_2(checked, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["data", "check", str(checked), "--worker", "1"])
    assert caught.value.code == 2
    assert "--workers" in capsys.readouterr().err


def test_long_listings_are_cut_on_the_terminal_only(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "set").mkdir()
    for number in range(30):
        (tmp_path / "set" / f"{number:02}.png").write_bytes(bytes([number]))
    data_check(DataCheckConfig(folder=tmp_path / "set", workers=1, show=4))
    output = capsys.readouterr().out
    assert output.count("is not an image") == 4
    assert "… and 26 more" in output
    assert len(json.loads((tmp_path / "runs/data-check/set/findings.json").read_text())["unreadable"]) == 30


def test_the_check_runs_without_torch(checked):
    """In a process where importing torch fails, as on a device with the base install alone."""
    script = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'timm', 'torchvision', 'safetensors'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from edgemim.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["data", "check", str(checked), "--workers", "2"]
    result = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert "16 images" in result.stdout


def test_nothing_but_errors_goes_to_standard_error_without_a_terminal(checked, capsys):
    data_check(DataCheckConfig(folder=checked, workers=0))
    assert capsys.readouterr().err == ""


def test_real_photos(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    summary = data_check(DataCheckConfig(folder=photos))
    assert (summary["images"], summary["readable"], summary["unreadable"], summary["odd"]) == (120, 120, 0, {})
    assert summary["formats"] == {"JPEG": 60, "PNG": 60}
    assert summary["width_px"] == {"min": 64, "median": 64.0, "max": 64}
    assert summary["splits"][""]["classes"] == dict.fromkeys(("astronaut", "chelsea", "coffee", "rocket"), 30)
