"""What CONTRIBUTING.md tells a newcomer works to the letter: the new method of its example, and its YAML of branches."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from edgemim.cli import main

REPOSITORY = Path(__file__).parent.parent
TEXT = (REPOSITORY / "CONTRIBUTING.md").read_text()


def block(language: str, opening: str) -> str:
    """The one block of code that begins so."""
    found = [code for code in re.findall(rf"```{language}\n(.*?)```", TEXT, re.DOTALL) if code.startswith(opening)]
    assert len(found) == 1
    return found[0]


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project in which the method was added by the words of the text, and by nothing else."""
    pytest.importorskip("torch")
    root = tmp_path_factory.mktemp("newcomer")
    for part in ("edgemim", "tests"):
        shutil.copytree(REPOSITORY / part, root / part, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", root)
    (file,) = re.findall(r"save it as\s`(edgemim/methods/\w+\.py)`", TEXT)
    (root / file).write_text(block("python", '"""Colour gradients'))
    imported, member = block("python", f"from {file.removesuffix('.py').replace('/', '.')} import").splitlines()
    registry = root / "edgemim/methods/__init__.py"
    text = registry.read_text()
    assert text.count("\nimport pydantic\n") == text.count("\n)\n\nMethodConfig") == 1
    text = text.replace("\nimport pydantic\n", f"\nimport pydantic\n\n{imported}\n")
    registry.write_text(text.replace("\n)\n\nMethodConfig", f"\n{member}\n)\n\nMethodConfig"))
    return root


def run(root: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A Python process that finds the copy before the project itself."""
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=root, env=environment, capture_output=True, text=True)


def pretraining(photos: Path, out: Path) -> list[str]:
    """The command line of a short run."""
    words = f"pretrain --data {photos} --out {out} --encoder vit_nano --epochs 3 --batch-size 30 --workers 0"
    return [*words.split(), "--warmup-epochs", "0", "--base-lr", "0.02", "--log-every", "1"]


def record_and_metrics(out: Path) -> tuple[dict, list[dict]]:
    """What a run left behind."""
    record = json.loads((out / "run.json").read_text())
    assert record["status"] == "done"
    return record, [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def test_the_new_method_learns_on_photos_from_the_command_line(newcomer: Path, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = ("--method", "gradient", "--method.decoder.width", "48")
    done = run(newcomer, "-m", "edgemim", *pretraining(photos, out), *flags)
    assert done.returncode == 0, done.stdout + done.stderr
    record, metrics = record_and_metrics(out)
    assert record["config"]["method"]["decoder"]["width"] == 48
    assert record["results"]["steps"] == 12
    losses = [line["loss_gradient"] for line in metrics if "loss_gradient" in line]
    assert sum(losses[-4:]) < sum(losses[:4])
    assert (tmp_path / "run/model/model.safetensors").is_file()


def test_the_projects_own_tests_take_the_new_method_in(newcomer: Path) -> None:
    files = ("tests/methods/test_every_method.py", "tests/methods/test_invariance.py")
    done = run(newcomer, "-m", "pytest", "-p", "no:cacheprovider", "-q", "-k", "GradientConfig and not rel", *files)
    assert done.returncode == 0, done.stdout + done.stderr
    passed = re.search(r"(\d+) passed|^(\.+) ", done.stdout, re.MULTILINE)
    assert passed is not None
    assert int(passed[1] or len(passed[2])) >= 5


def test_the_method_without_code_runs_as_written(photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    text = block("yaml", "name: composed")
    small = re.sub(r"tap: \d+", "tap: 2", text)
    assert small != text
    small = re.sub(r"block: \d+", "block: 2", small)
    (tmp_path / "method.yaml").write_text(small)
    assert main([*pretraining(photos, tmp_path / "teacher"), "--epochs", "0.5"]) == 0
    words = ["--method", str(tmp_path / "method.yaml"), "--method.branches.0.weight", "1"]
    words += ["--teacher", "checkpoint", "--teacher.path", str(tmp_path / "teacher")]
    assert main([*pretraining(photos, tmp_path / "run"), *words]) == 0
    record, metrics = record_and_metrics(tmp_path / "run")
    assert [branch["weight"] for branch in record["config"]["method"]["branches"]] == [1, 1]
    steps = [line for line in metrics if "loss" in line]
    assert len(steps) == 12
    for line in steps:
        assert line["loss"] == pytest.approx(line["loss_deep_8"] + line["loss_attention_2"], rel=1e-4)
