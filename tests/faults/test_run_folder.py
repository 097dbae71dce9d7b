"""Whose folder it is, what may be resumed, and what is never lost."""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
from fault_harness import PRETRAIN, STEPS, Ended, Launcher, Run

Call = Callable[..., Ended]


def command(images: Path, run: Run, *more: str) -> list[str | Path]:
    """The reference's command into a folder."""
    return [*PRETRAIN, "--data", images, "--out", run.folder, "--workers", "0", *more]


def test_a_second_run_is_refused_and_the_first_goes_on(
    launcher: Launcher, images: Path, tmp_path: Path, reference: Run, edgemim_here: Call
) -> None:
    run = Run(tmp_path / "run")
    job = launcher.start([*command(images, run), "--workers", "2"])
    job.wait_until(lambda: run.step >= 5, "step 5")
    for more in ([], ["--resume"], ["--overwrite"]):
        edgemim_here(command(images, run, *more)).refused("another run is writing to", str(run.folder))
    # Killed, it gives the folder free at once: its workers, which outlive it by a moment, do not hold the lock.
    workers = job.descendants()
    assert len(workers) == 2
    for worker in workers:
        worker.suspend()
    os.kill(job.pid, signal.SIGKILL)
    job.wait()
    with open(run.folder / ".lock", "a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    for worker in workers:
        worker.resume()
    assert not job.orphans()
    ended = edgemim_here(command(images, run, "--resume"))
    assert ended.code == 0, ended.output
    assert run.results == reference.results


def test_a_killed_worker_is_named_and_the_run_resumes(
    launcher: Launcher, images: Path, tmp_path: Path, reference: Run, edgemim_here: Call
) -> None:
    run = Run(tmp_path / "run")
    job = launcher.start([*command(images, run), "--workers", "2"])
    job.wait_until(lambda: run.step >= 20, "step 20")
    worker: psutil.Process = job.descendants()[0]
    since = time.monotonic()
    worker.kill()
    ended = job.wait()
    assert time.monotonic() - since < 10 + 10  # ten seconds, and as many for a machine that is busy
    ended.refused(f"pid {worker.pid}", "out of memory", "resume", code=1)
    assert not job.orphans()
    ended = edgemim_here(command(images, run, "--resume"))
    assert ended.code == 0, ended.output
    assert run.results == reference.results


def test_changes_are_refused_with_the_difference_and_nothing_is_touched(
    edgemim_here: Call, images: Path, copy_of_reference: Run, tmp_path: Path
) -> None:
    run = copy_of_reference
    before = run.contents()
    fewer = Path(shutil.copytree(images, tmp_path / "fewer"))
    next((fewer / "coffee").iterdir()).unlink()
    for more, difference in {
        ("--base-lr", "1e-3"): "base_lr: 0.004 -> 0.001",
        ("--data", str(fewer)): "data: ",
        ("--encoder.width", "96"): "encoder.width: 48 -> 96",
        ("--seed", "1"): "seed: 0 -> 1",
        ("--method.mask-ratio", "0.5"): "method.mask_ratio: 0.75 -> 0.5",
    }.items():
        edgemim_here(command(images, run, "--resume", *more)).refused("cannot resume", difference, "--allow-change")
        assert run.contents() == before, more


def test_allowed_changes_are_made(edgemim_here: Call, images: Path, copy_of_reference: Run, reference: Run) -> None:
    run = copy_of_reference
    shutil.rmtree(run.checkpoints[-1])
    ended = edgemim_here(command(images, run, "--resume", "--allow-change", "--base-lr", "1e-1"))
    assert ended.code == 0, ended.output
    assert f"resuming at step {STEPS - 4}" in ended.output
    assert run.model_hash != reference.model_hash
    # What no permission can help with is still one sentence.
    ended = edgemim_here(command(images, run, "--resume", "--allow-change", "--encoder.width", "96"))
    ended.refused("do not fit this model", "encoder.width: 48 -> 96")


def test_moved_images_and_free_settings_are_no_change(
    edgemim_here: Call, images: Path, copy_of_reference: Run, reference: Run, tmp_path: Path
) -> None:
    run = copy_of_reference
    moved = Path(shutil.copytree(images, tmp_path / "moved"))
    shutil.rmtree(run.checkpoints[-1])
    shutil.rmtree(run.folder / "model")
    free = ["--log-every", "7", "--keep-checkpoints", "3", "--checkpoint-epochs", "0.5", "--picture-every", "0"]
    ended = edgemim_here([*command(images, run, "--resume", *free), "--data", moved])
    assert ended.code == 0, ended.output
    assert run.model_hash == reference.model_hash


def test_what_a_folder_holds_is_lost_only_on_request(
    edgemim_here: Call, images: Path, copy_of_reference: Run, tmp_path: Path
) -> None:
    run, before = copy_of_reference, copy_of_reference.contents()
    short = ["--epochs", "2", "--warmup-epochs", "1"]
    edgemim_here(command(images, run, *short)).refused("is not empty", "--resume", "--overwrite")
    assert run.contents() == before
    ended = edgemim_here(command(images, run, *short, "--overwrite"))
    assert ended.code == 0, ended.output
    assert run.saved_step == 8
    assert not before.keys() & {f"checkpoints/step-{STEPS:09d}/model.safetensors"} & run.contents().keys()
    # Somebody's own files are not a run: no flag deletes them.
    mine = Run(tmp_path / "mine")
    mine.folder.mkdir()
    (mine.folder / "thesis.txt").write_text("years of work")
    edgemim_here(command(images, mine, "--overwrite")).refused("was not made by edgemim")
    edgemim_here(command(images, mine)).refused("is not empty")
    assert (mine.folder / "thesis.txt").read_text() == "years of work"
    edgemim_here(command(images, Run(mine.folder / "thesis.txt"))).refused("is a file")


def test_resuming_needs_a_folder_and_may_find_it_empty(edgemim_here: Call, images: Path, tmp_path: Path) -> None:
    edgemim_here([*PRETRAIN, "--data", images, "--resume"]).refused("--out", "--resume")
    run = Run(tmp_path / "new")
    ended = edgemim_here(command(images, run, "--resume", "--epochs", "2", "--warmup-epochs", "1"))
    assert ended.code == 0, ended.output
    assert "starting at step 0" in ended.output


def test_a_finished_run_resumes_to_itself(
    edgemim_here: Call, images: Path, copy_of_reference: Run, reference: Run
) -> None:
    run = copy_of_reference
    shutil.rmtree(run.folder / "model")
    shutil.rmtree(run.folder / "pictures")
    ended = edgemim_here(command(images, run, "--resume"))
    assert ended.code == 0, ended.output
    assert run.results == reference.results
    assert (run.folder / "pictures" / f"reconstruction-{STEPS:09d}.png").exists()
    for key in ("knn_top1", "images", "steps", "last_metrics", "nonfinite_steps"):
        assert run.record["results"][key] == reference.record["results"][key], key


def test_a_refusal_is_not_overruled_by_torchruns_restarts(
    launcher: Launcher, images: Path, copy_of_reference: Run
) -> None:
    """Refused a folder, the first attempt ends; the agent's next one must not take its restart for a permission."""
    run, before = copy_of_reference, copy_of_reference.contents()
    ended = launcher.run(command(images, run), processes=2, restarts=1)
    assert ended.code != 0
    assert ended.output.count("is not empty") == 4, ended.output  # both ranks, both attempts
    assert "fault of edgemim" not in ended.output
    assert "lost the others" not in ended.output
    assert run.contents() == before
