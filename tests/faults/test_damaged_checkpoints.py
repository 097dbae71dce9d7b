"""A damaged checkpoint is named and never used; the one before it leads to the same result."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_harness import PRETRAIN, STEPS, Ended, Run, flip_bit, sha256

Call = Callable[..., Ended]
FILES = ["model.safetensors", "optimizer.safetensors", "ema.safetensors", "state.json", "SHA256SUMS"]


def resume(call: Call, images: Path, run: Run) -> Ended:
    """Resume the reference's command in a folder."""
    return call([*PRETRAIN, "--data", images, "--out", run.folder, "--workers", "0", "--resume"])


def truncated(path: Path) -> None:
    """Cut the last third off."""
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])


def test_the_cases_are_all_the_files(reference: Run) -> None:
    assert sorted(path.name for path in reference.checkpoints[-1].iterdir()) == sorted(FILES)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    "damage", [flip_bit, truncated, lambda path: path.write_bytes(b""), Path.unlink], ids=["bit", "cut", "zero", "gone"]
)
def test_a_damaged_file_is_named_and_the_checkpoint_before_used(
    edgemim_here: Call, images: Path, reference: Run, copy_of_reference: Run, damage: Callable[[Path], None], file: str
) -> None:
    run = copy_of_reference
    shutil.rmtree(run.folder / "model")
    newest = run.checkpoints[-1]
    damage(newest / file)
    damaged = {path.name: sha256(path) for path in newest.iterdir()}
    ended = resume(edgemim_here, images, run)
    assert ended.code == 0, ended.output
    assert newest.name in ended.output
    assert file in ended.output
    assert f"resuming at step {STEPS - 4} of {STEPS}" in ended.output
    assert run.results == reference.results
    # The whole ones before it are not pushed out by it, and it stays to be looked at.
    assert [path.name for path in run.checkpoints] == [path.name for path in reference.checkpoints]
    aside = newest.with_name(newest.name + ".damaged")
    assert {path.name: sha256(path) for path in aside.iterdir()} == damaged


def test_odd_things_among_the_checkpoints(
    edgemim_here: Call, images: Path, reference: Run, copy_of_reference: Run
) -> None:
    """An empty directory of a newer step, a file in its place, half a save, and `latest` that points nowhere."""
    run = copy_of_reference
    folder = run.folder / "checkpoints"
    (folder / "step-000000300").mkdir()
    (folder / "step-000000301").write_text("a file")
    shutil.copytree(run.checkpoints[0], folder / "step-000000302.tmp")
    (folder / "latest").write_text("step-000009999\n")
    shutil.rmtree(run.folder / "model")
    ended = resume(edgemim_here, images, run)
    assert ended.code == 0, ended.output
    assert "step-000000300/SHA256SUMS cannot be read" in ended.output
    assert f"resuming at step {STEPS} of {STEPS}" in ended.output
    assert run.results == reference.results
    assert not run.leftovers


def test_no_whole_checkpoint_is_an_error_and_changes_none(
    edgemim_here: Call, images: Path, copy_of_reference: Run
) -> None:
    run = copy_of_reference
    for path in run.checkpoints:
        flip_bit(path / "model.safetensors")
    before = {path: sha256(path) for path in (run.folder / "checkpoints").rglob("*") if path.is_file()}
    ended = resume(edgemim_here, images, run)
    ended.refused("no whole checkpoint", *(path.name for path in run.checkpoints), "start anew")
    assert {path: sha256(path) for path in (run.folder / "checkpoints").rglob("*") if path.is_file()} == before
