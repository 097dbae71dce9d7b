"""The comparison with published implementations: every covered case agrees, and the runner notices what does not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from tests.golden.__main__ import main  # noqa: E402
from tests.golden.case import Case, Comparison  # noqa: E402
from tests.golden.runners import RUNNERS, run_case  # noqa: E402

torch.set_num_threads(1)


@pytest.mark.parametrize("name", sorted(RUNNERS))
def test_case_agrees(shared: Path, name: str) -> None:
    result = run_case(shared / "golden" / name)
    assert [str(line) for line in result.lines if not line.passed] == []
    assert len(result.lines) >= 3


@pytest.mark.parametrize("name", sorted(RUNNERS.keys() - {"layer_decay", "beit_block_mask"}))
def test_nothing_in_a_covered_case_is_left_out(shared: Path, name: str) -> None:
    assert run_case(shared / "golden" / name).left_out == []


def damaged(case: Path, to: Path, part: str, key: str, factor: float) -> Path:
    """A copy of a case in which one entry of one tensor is another."""
    shutil.copytree(case, to)
    tensors = load_file(to / f"{part}.safetensors")
    tensors[key].view(-1)[0] *= factor
    save_file(tensors, to / f"{part}.safetensors")
    return to


@pytest.mark.parametrize(
    ("part", "key", "factor"),
    [
        ("weights", "blocks.3.attn.qkv.weight", 1.05),
        ("outputs", "pred", 1.001),
        ("outputs", "grad.mask_token", 1.1),
        ("outputs", "loss", float("nan")),
        ("inputs", "images", 3.0),
    ],
)
def test_one_changed_number_is_outside_tolerance(
    shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], part: str, key: str, factor: float
) -> None:
    assert main([str(damaged(shared / "golden" / "mae", tmp_path / "mae", part, key, factor))]) == 1
    assert "OUTSIDE" in capsys.readouterr().out


def test_a_missing_gradient_is_outside_tolerance(shared: Path) -> None:
    result = Comparison(Case.open(shared / "golden" / "mae"))
    result.numbers("norms", {"a": 1.0}, {"a": 1.0, "b": 2.0}, floor=0.0)
    assert not result.passed
    assert not Comparison(result.case).passed  # nothing compared is nothing shown


def test_tolerance_is_the_stated_one(shared: Path) -> None:
    case = Case.open(shared / "golden" / "mae")
    expected = case.outputs["pred"]
    allowed = case.facts["tolerance"]["atol"] + case.facts["tolerance"]["rtol"] * expected.abs()
    for share, passes in ((0.9, True), (1.1, False)):
        result = Comparison(case)
        result.output("pred", expected + share * allowed)
        assert result.passed is passes


def test_exit_codes(shared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(shared / "golden" / "mae")]) == 0
    assert capsys.readouterr().out.count("\n") > 15  # a line a tensor
    assert main([str(tmp_path)]) == 2
    assert main([str(tmp_path / "absent")]) == 2
    (tmp_path / "case.json").write_text("{not json")
    assert main([str(tmp_path)]) == 2
    assert "is no golden case" in capsys.readouterr().err
    unknown = tmp_path / "unknown"
    unknown.mkdir()
    (unknown / "case.json").write_text(json.dumps({"case": "no_such_method"}))
    assert main([str(unknown)]) == 2
    assert "no code covers" in capsys.readouterr().err


def test_an_incomplete_case_is_no_case(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "golden" / "mae", tmp_path / "mae")
    (tmp_path / "mae" / "weights.safetensors").unlink()
    assert main([str(tmp_path / "mae")]) == 2


def test_a_folder_of_cases_from_the_command_line(shared: Path, tmp_path: Path) -> None:
    for name in ("mae", "vit_finetune_cls"):
        shutil.copytree(shared / "golden" / name, tmp_path / name)
    other = tmp_path / "other"
    other.mkdir()
    (other / "case.json").write_text(json.dumps({"case": "no_such_method"}))
    command = [sys.executable, "-m", "tests.golden", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    assert "other: not covered" in run.stdout
    assert "2 of 2 covered cases within tolerance, 1 not covered" in run.stdout
    damaged(tmp_path / "mae", tmp_path / "worse", "outputs", "latent", 3.0)
    assert main([str(tmp_path)]) == 1
