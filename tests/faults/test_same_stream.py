"""Workers and processes are a matter of speed: samples, augmentations and results do not depend on them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from fault_harness import PRETRAIN, STEPS, Ended, Run

from edgemim.data.folders import scan_folder
from edgemim.data.loader import Batch, build_loader
from edgemim.data.transforms import FinetuneTransform


def test_two_workers_give_the_same_weights(
    edgemim_here: Callable[..., Ended], images: Path, tmp_path: Path, reference: Run
) -> None:
    run = Run(tmp_path / "run")
    ended = edgemim_here([*PRETRAIN, "--data", images, "--out", run.folder, "--workers", "2"])
    assert ended.code == 0, ended.output
    assert run.results == reference.results


def stream(images: Path, *, rank: int, world: int, workers: int) -> list[Batch]:
    """One rank's batches of ten epochs, in two parts a step, with every random augmentation there is."""
    transform = FinetuneTransform().build(32)
    loader = build_loader(
        scan_folder(images), transform, batch_size=16, seed=0, total_steps=40, rank=rank, world=world, accumulate=2,
        workers=workers,
    )  # fmt: skip
    return list(loader)


@pytest.mark.parametrize("workers", [0, 2])
def test_two_processes_see_the_same_samples(images: Path, workers: int) -> None:
    alone = stream(images, rank=0, world=1, workers=0)
    ranks = [stream(images, rank=rank, world=2, workers=workers) for rank in range(2)]
    assert len(alone) == len(ranks[0]) == len(ranks[1]) == 80
    for step in range(40):
        parts = slice(2 * step, 2 * step + 2)
        whole = by_key(alone[parts])
        assert len(whole) == 16
        together = by_key([*ranks[0][parts], *ranks[1][parts]])
        assert whole.keys() == together.keys()
        for key, (index, pixels) in whole.items():
            assert together[key][0] == index
            assert torch.equal(together[key][1], pixels)


def by_key(batches: list[Batch]) -> dict[int, tuple[int, torch.Tensor]]:
    """Key of each sample to the image's index and its augmented pixels."""
    rows = [row for batch in batches for row in zip(batch.keys, batch.indices, batch.images, strict=True)]
    return {int(key): (int(index), pixels) for key, index, pixels in rows}


def test_two_processes_have_the_same_loss(reference: Run, reference_of_two: Run) -> None:
    """Sums in another order differ in their last bits; the runs stay together to the end all the same."""
    one, two = reference.metrics("loss", "lr"), reference_of_two.metrics("loss", "lr")
    assert len(one) == len(two) == STEPS
    for (step, loss, rate), (other_step, other_loss, other_rate) in zip(one, two, strict=True):
        assert (step, rate) == (other_step, other_rate)
        assert loss == pytest.approx(other_loss, abs=1e-4), step
    assert one[-1][1] < 0.8 * one[0][1]  # it learnt: the same loss is not that of two runs that stand still


def test_two_processes_leave_what_one_can_go_on_with(
    reference_of_two: Run, reference: Run, edgemim_here: Callable[..., Ended], images: Path, tmp_path: Path
) -> None:
    """Another number of processes is a change that has to be allowed, and then gives the same result to rounding."""
    run = Run(shutil.copytree(reference_of_two.folder, tmp_path / "run"))
    shutil.rmtree(run.checkpoints[-1])
    words = [*PRETRAIN, "--data", images, "--out", run.folder, "--workers", "0", "--resume"]
    edgemim_here(words).refused("world_size: 2 -> 1", "--allow-change")
    ended = edgemim_here([*words, "--allow-change"])
    assert ended.code == 0, ended.output
    assert f"resuming at step {STEPS - 4}" in ended.output
    ours, theirs = run.metrics("loss"), reference.metrics("loss")
    assert [loss for _, loss in ours] == pytest.approx([loss for _, loss in theirs], abs=1e-4)
