"""A disk that is full, limited or read-only: a clear sentence with path and bytes, no half file, nothing lost."""

from __future__ import annotations

import contextlib
import os
import resource
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fault_harness import PRETRAIN, Ended, Launcher, Run

from edgemim.training.checkpoint import read_checkpoint


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own of 24 MB; skips where nothing may be mounted."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder, "-t", "tmpfs", "-o", "size=24m", "edgemim-test")
    yield folder
    subprocess.run(["umount", "-l", folder], check=False)


def mount(folder: Path, *options: str) -> None:
    """Mount, or skip with the reason."""
    try:
        done = subprocess.run(["mount", *options, folder], capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no mount command here")
    if done.returncode:
        pytest.skip(f"mounting is not permitted here: {done.stderr.strip()}")


def fill(folder: Path, leave_bytes: int) -> Path:
    """Fill the disk but for `leave_bytes`, or wholly where the run, which goes on, took its bytes meanwhile."""
    free = os.statvfs(folder)
    ballast = folder / "ballast"
    with contextlib.suppress(OSError):
        ballast.write_bytes(b"\0" * (free.f_bavail * free.f_bsize - leave_bytes))
    return ballast


@pytest.mark.parametrize("left", [0, pytest.param(200_000, marks=pytest.mark.slow)], ids=["full", "nearly"])
def test_a_full_disk(
    launcher: Launcher, images: Path, small_disk: Path, reference: Run, edgemim_here: Callable[..., Ended], left: int
) -> None:
    run = Run(small_disk / "run")
    words = [*PRETRAIN, "--data", images, "--out", run.folder, "--workers", "0"]
    job = launcher.start(words)
    job.wait_until(lambda: run.saved_step >= 40, "save of step 40")
    ballast = fill(small_disk, left)
    ended = job.wait()
    step = run.saved_step
    # Two failed saves are borne, the third ends the run.
    ended.refused(f"{run.folder}/checkpoints/step-", " bytes): No space left on device", "free space and --resume")
    assert ended.output.count("training goes on until the next save") == 2, ended.output
    assert not run.leftovers
    assert [read_checkpoint(path).step for path in run.checkpoints][-1] == step >= 40
    ballast.unlink()
    finished = edgemim_here([*words, "--resume"])
    assert finished.code == 0, finished.output
    assert f"resuming at step {step} of" in finished.output
    assert run.results == reference.results
    assert run.metrics("loss") == reference.metrics("loss")


def test_a_limit_on_the_size_of_files(images: Path, tmp_path: Path, launcher: Launcher) -> None:
    """RLIMIT_FSIZE, as `ulimit -f` sets it: the other way for a write to fail half-way, without a mount."""
    run = Run(tmp_path / "run")
    words = [*PRETRAIN, "--data", images, "--out", run.folder, "--workers", "0"]
    job = launcher.start(words)
    job.wait_until(lambda: run.saved_step >= 40, "save of step 40")
    resource.prlimit(job.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    ended = job.wait()
    ended.refused(f"{run.folder}/checkpoints/step-", " bytes): File too large", "ulimit -f")
    assert not run.leftovers
    assert read_checkpoint(run.checkpoints[-1]).step == run.saved_step
    assert run.record["status"] == "failed"


def test_a_read_only_folder_is_refused_before_the_first_step(
    images: Path, tmp_path: Path, edgemim_here: Callable[..., Ended]
) -> None:
    folder = tmp_path / "disk"
    folder.mkdir()
    root = os.geteuid() == 0  # whom permissions do not stop, but a read-only file system does
    if root:
        mount(folder, "-t", "tmpfs", "-o", "ro", "edgemim-test")
    else:
        folder.chmod(0o555)
    try:
        ended = edgemim_here([*PRETRAIN, "--data", images, "--out", folder / "run", "--workers", "0"])
        ended.refused(str(folder / "run"), "choose another --out")
        ended = edgemim_here([*PRETRAIN, "--data", images, "--out", folder, "--workers", "0"])
        ended.refused(str(folder), "choose another --out")
    finally:
        if root:
            subprocess.run(["umount", "-l", folder], check=False)
        else:
            folder.chmod(0o755)
