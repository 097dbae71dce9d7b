"""The comparison with published implementations: every covered case agrees, and the runner notices what does not."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from safetensors.torch import load_file, save_file  # noqa: E402

from tests.golden import deepmim, distill, mff, mirl, pixmim, simmim, vit  # noqa: E402
from tests.golden.__main__ import main  # noqa: E402
from tests.golden.case import Case, Comparison, kind_of  # noqa: E402
from tests.golden.runners import NOT_YET, RUNNERS, run_case  # noqa: E402

torch.set_num_threads(1)


CASES = Path(__file__).parent / "cases"


@pytest.mark.parametrize(
    "folder",
    sorted(path.parent for path in CASES.glob("*/case.json") if path.parent.name in RUNNERS),
    ids=lambda p: p.name,
)
def test_small_case_agrees(folder: Path) -> None:
    result = run_case(folder)
    assert [str(line) for line in result.lines if not line.passed] == []
    assert result.left_out == []
    assert (
        folder.name in ("pixmim_lowpass", "maskfeat_hog", "ostrack_targets")
    ) or "grad_l2_norms" in result.case.facts


def test_the_small_cases_are_small_and_say_whose_they_are() -> None:
    assert sum(path.stat().st_size for path in CASES.rglob("*") if path.is_file()) < 1.6e6
    for path in CASES.glob("*/case.json"):
        assert "edgemim's own values" in json.loads(path.read_text())["source"]


@pytest.mark.parametrize("name", sorted(RUNNERS))
def test_case_agrees(shared: Path, name: str) -> None:
    result = run_case(shared / "golden" / name)
    assert [str(line) for line in result.lines if not line.passed] == []
    assert len(result.lines) >= 3


@pytest.mark.parametrize("name", sorted(RUNNERS.keys() - {"beit_block_mask"}))
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


SMALL = CASES / "mae"


def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(SMALL)]) == 0
    assert capsys.readouterr().out.count("\n") > 15  # a line a tensor
    assert main([str(tmp_path)]) == 1
    assert main([str(tmp_path / "absent")]) == 1
    assert "holds none" in capsys.readouterr().err
    (tmp_path / "case.json").write_text("{not json")
    assert main([str(tmp_path)]) == 1
    assert "is no golden case" in capsys.readouterr().err


def named(folder: Path, name: str) -> Path:
    """A case that holds nothing but a name."""
    folder.mkdir()
    (folder / "case.json").write_text(json.dumps({"case": name}))
    return folder


def test_an_unknown_case_fails_and_one_of_a_later_part_is_said_to_be_left_out(
    tmp_path: Path, capsys, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(SMALL, tmp_path / "mae")
    monkeypatch.setitem(NOT_YET, "sculpture", "a later part of the project")
    named(tmp_path / "later", "sculpture")
    assert main([str(tmp_path)]) == 0
    assert "later: not compared (a later part of the project)" in capsys.readouterr().out
    assert main([str(tmp_path), "later"]) == 1
    assert main([str(tmp_path / "later")]) == 1  # nothing was compared
    named(tmp_path / "unknown", "no_such_method")
    assert main([str(tmp_path)]) == 1
    assert "unknown: UNKNOWN case 'no_such_method'" in capsys.readouterr().out


def test_cases_are_picked_by_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(SMALL, tmp_path / "first")
    shutil.copytree(CASES / "pixmim_lowpass", tmp_path / "second")
    assert main([str(tmp_path), "second"]) == 0
    printed = capsys.readouterr().out
    assert "second: largest deviation" in printed and "first" not in printed
    assert main([str(tmp_path), "mae", "second"]) == 0  # by what it holds, or by its folder
    assert "2 of 2 covered cases" in capsys.readouterr().out
    assert main([str(tmp_path), "second", "third"]) == 1
    assert "holds no case 'third'; it holds first, second" in capsys.readouterr().err


def with_output(to: Path, name: str) -> Path:
    """A copy of a case that stores one output more."""
    shutil.copytree(SMALL, to)
    save_file({**load_file(to / "outputs.safetensors"), name: torch.zeros(2)}, to / "outputs.safetensors")
    return to


@pytest.mark.parametrize("name", ["surprise", "block77", "grad.no_such.weight"])
def test_an_output_that_nothing_compares_is_outside(tmp_path: Path, capsys, name: str) -> None:
    assert main([str(with_output(tmp_path / "mae", name))]) == 1
    assert "never compared, and no reason given" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["more", "fewer", "other"])
def test_every_norm_of_a_gradient_counts(tmp_path: Path, change: str) -> None:
    shutil.copytree(SMALL, tmp_path / "mae")
    facts = json.loads((tmp_path / "mae" / "case.json").read_text())
    norms = facts["grad_l2_norms"]
    if change == "more":
        norms["no_such.weight"] = 1.0
    elif change == "fewer":
        del norms["cls_token"]
    else:
        norms["cls_token"] *= 1.01
    (tmp_path / "mae" / "case.json").write_text(json.dumps(facts))
    assert main([str(tmp_path / "mae")]) == 1


def test_norms_that_no_runner_asks_for_are_outside(tmp_path: Path) -> None:
    shutil.copytree(CASES / "pixmim_lowpass", tmp_path / "case")
    facts = json.loads((tmp_path / "case" / "case.json").read_text())
    (tmp_path / "case" / "case.json").write_text(json.dumps({**facts, "grad_l2_norms": {"a": 1.0}}))
    assert main([str(tmp_path / "case")]) == 1


def test_a_case_that_breaks_its_runner_fails_and_the_others_are_compared(tmp_path: Path, capsys) -> None:
    shutil.copytree(SMALL, tmp_path / "good")
    shutil.copytree(SMALL, tmp_path / "bad")
    weights = load_file(tmp_path / "bad" / "weights.safetensors")
    del weights["cls_token"]
    save_file(weights, tmp_path / "bad" / "weights.safetensors")
    assert main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "bad: FAILED" in printed and "good: largest deviation" in printed


def test_an_incomplete_case_is_no_case(shared: Path, tmp_path: Path) -> None:
    shutil.copytree(shared / "golden" / "mae", tmp_path / "mae")
    (tmp_path / "mae" / "weights.safetensors").unlink()
    assert main([str(tmp_path / "mae")]) == 1


def test_a_folder_of_cases_from_the_command_line(shared: Path, tmp_path: Path) -> None:
    for name in ("mae", "vit_finetune_cls"):
        shutil.copytree(shared / "golden" / name, tmp_path / name)
    command = [sys.executable, "-m", "tests.golden", str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert run.returncode == 0, run.stderr
    assert "2 of 2 covered cases within tolerance, 0 not covered yet" in run.stdout
    damaged(tmp_path / "mae", tmp_path / "worse", "outputs", "latent", 3.0)
    assert main([str(tmp_path)]) == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("d_mae", "d_mae"),
        ("d_mae_w96", "d_mae"),
        ("d_mae_ext_seed7", "d_mae_ext"),
        ("mae2", "mae"),
        ("mae-p8", "mae"),
        ("vit_rpe_qv_deep", "vit_rpe_qv"),
        ("hiera_mae_q1", "hiera_mae"),
        ("maezero", None),
        ("no_such_mae", None),
        ("", None),
    ],
)
def test_a_cases_name_may_go_on_behind_what_it_holds(name: str, kind: str | None) -> None:
    assert kind_of(name, RUNNERS) == kind


def test_a_case_of_another_name_is_compared_as_what_it_begins_with(tmp_path: Path, capsys) -> None:
    shutil.copytree(SMALL, tmp_path / "held_out")
    facts = json.loads((tmp_path / "held_out" / "case.json").read_text())
    (tmp_path / "held_out" / "case.json").write_text(json.dumps({**facts, "case": "mae_seed7"}))
    assert main([str(tmp_path)]) == 0
    assert "held_out: largest deviation" in capsys.readouterr().out


def test_a_parameter_that_nothing_reaches_may_be_stated_with_a_norm_of_zero(tmp_path: Path) -> None:
    shutil.copytree(SMALL, tmp_path / "mae")
    facts = json.loads((tmp_path / "mae" / "case.json").read_text())
    facts["grad_l2_norms"]["frozen.weight"] = 0.0
    (tmp_path / "mae" / "case.json").write_text(json.dumps(facts))
    assert main([str(tmp_path / "mae")]) == 0


def other_sizes(name: str, **changes: object) -> Case:
    """A small case with other settings, whose weights are no longer of their sizes: to build a model from."""
    case = Case.open(CASES / name)
    return replace(case, facts={**case.facts, "config": {**case.config, **changes}})


def test_a_model_is_built_from_what_the_case_says() -> None:
    """Settings in which no published case differs from the library's own rules or defaults."""
    fused = mff.build(other_sizes("mff", num_layers=5, out_indices=[1, 2, 4]))
    assert fused.taps == (2, 3, 5)
    assert mirl._build(other_sizes("mirl", depth=7, out_indices=[0, 2, 3])).taps == (0, 1, 3, 4, 7)
    assert deepmim._build(other_sizes("deepmim", depth=9, taps=[2, 5, 9])).taps == (2, 5, 9)
    bare = simmim._build(other_sizes("simmim_vit", init_values=0, use_rel_pos_bias=True, use_abs_pos_emb=True))
    assert (bare.encoder.config.offsets, bare.encoder.config.layer_scale) == ("both", None)  # pyright: ignore
    assert bare.encoder.vit.pos_embed is not None and bare.encoder.vit.pos_embed.requires_grad
    flags = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": False, "use_abs_pos_emb": True}
    assert vit._sizes(other_sizes("vit_finetune", **flags, qkv_bias=True, qv_bias=False)).name == "vit"


def test_a_wrappers_mlp_ratio_and_idle_weights_are_read_from_the_case() -> None:
    case = other_sizes("d_mae", hidden_idx_ext=[], hidden_alpha=0.0)
    halved = {
        key: value[: len(value) // 2] if ".mlp.fc1." in key else value[:, ::2] if ".mlp.fc2.weight" in key else value
        for key, value in case.weights.items()
    }
    case = replace(case, weights=halved)
    model = distill._d_mae(case, distill._teacher(case))
    assert model.encoder.config.mlp_ratio == 2.0
    assert {branch.name.split("_")[0] for branch in model.branches} == {"pixel", "attention"}


@pytest.mark.parametrize("side", [9, 14, 17])
def test_a_filter_of_any_side(side: int) -> None:
    case = other_sizes("pixmim_lowpass", img_size=side, radius=3.5)
    generator = torch.Generator().manual_seed(0)
    case = replace(case, inputs={"images": torch.randn(1, 3, side, side, generator=generator)}, outputs={})
    assert pixmim.compare(case).lines == []
