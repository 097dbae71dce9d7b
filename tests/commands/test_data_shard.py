"""`edgemim data shard` as a verb: shards that other verbs take, a record, --resume, and nothing lost unasked."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packed_files import write_tar

from edgemim.cli import main
from edgemim.commands.data import DataCheckConfig, data_check
from edgemim.commands.data_shard import DataShardConfig, data_shard
from edgemim.data.sources import find_sources


@pytest.fixture
def folder(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Photos with a split; the working directory is beside it."""
    monkeypatch.chdir(tmp_path)
    for number, path in enumerate(sorted(photos.rglob("*.*"))):
        target = tmp_path / "set" / ("val" if number % 4 == 0 else "train") / path.parent.name / path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)
    return tmp_path / "set"


def test_shards_of_a_set_with_splits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = data_shard(DataShardConfig(data=folder, out=Path("shards"), per_shard=40))
    assert (results["images"], results["shards"], results["written"]) == (120, 4, 4)
    assert "next: edgemim pretrain --data shards" in capsys.readouterr().out
    record = json.loads(Path("shards/run.json").read_text())
    assert (record["verb"], record["status"], record["results"]) == ("data shard", "done", results)
    for split in ("train", "val"):
        one, other = (find_sources(path).splits[split].open() for path in (folder, Path("shards")))
        assert [one.read(i) for i in range(len(one))] == [other.read(i) for i in range(len(other))]
        assert (one.classes, one.labels.tolist()) == (other.classes, other.labels.tolist())
    summaries = [data_check(DataCheckConfig(folder=path, workers=0)) for path in (folder, Path("shards"))]
    for summary in summaries:
        summary.pop("other_files")
    assert summaries[0] == summaries[1]


def test_a_second_call_resumes_or_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["data", "shard", str(folder), "--out", "shards", "--per-shard", "40"]
    assert main(words) == 0
    before = {path: path.read_bytes() for path in Path("shards").rglob("*.tar")}
    assert main(words) == 2
    assert "--resume to go on" in capsys.readouterr().err
    Path("shards/train/train-000001.tar").unlink()
    assert main([*words, "--resume"]) == 0
    assert "120 images in 4 shards" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in Path("shards").rglob("*.tar")} == before
    assert main([*words[:-1], "30", "--resume"]) == 2
    assert "of another --per-shard" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path("shards").rglob("*.tar")} == before
    assert main([*words[:-1], "30", "--overwrite"]) == 0
    assert len(list(Path("shards").rglob("*.tar"))) == 4  # three of train's 90, one of val's 30


def test_nothing_of_others_is_touched(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "thesis.txt").write_text("years of work")
    for extra in ([], ["--overwrite"], ["--resume"]):
        assert main(["data", "shard", str(folder), "--out", str(kept), *extra]) == 2
        assert [path.name for path in kept.iterdir() if path.name != ".lock"] == ["thesis.txt"]
    assert main(["data", "shard", str(folder), "--out", str(folder / "shards")]) == 2
    assert "--out outside it" in capsys.readouterr().err
    assert not (folder / "shards").exists()


def test_mistakes_are_one_sentence(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut = write_tar(tmp_path / "cut.tar", [("k.jpg", b"x" * 2000)])
    cut.write_bytes(cut.read_bytes()[:1000])
    for words, message in (
        ([], "give what to read and where to write"),
        ([str(folder)], "give what to read and where to write"),
        (["nope", "--out", "s"], "no folder at nope"),
        ([str(cut), "--out", "s"], "cut.tar ends within 'k.jpg'"),
    ):
        assert main(["data", "shard", *words]) == 2
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 1
        assert not Path("s").exists()


def test_it_runs_without_torch(folder: Path) -> None:
    """In a process where importing torch or pyarrow fails, as on a device with the base install alone."""
    script = (
        "import sys\n"
        "class Absent:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name in ('torch', 'timm', 'torchvision', 'safetensors', 'pyarrow'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Absent())\n"
        "from edgemim.cli import main\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["data", "shard", str(folder), "--out", "shards"]
    result = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    Path("x.parquet").write_bytes(b"PAR1")
    result = subprocess.run(
        [sys.executable, "-c", script, "data", "check", "x.parquet"], capture_output=True, text=True
    )
    assert result.returncode == 4
    assert "needs pyarrow: pip install 'edgemim[hf]'" in result.stderr
