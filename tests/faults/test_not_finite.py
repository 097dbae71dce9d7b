"""A step that is not finite never reaches weights, moments or averages; three in a row end the run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from fault_harness import PRETRAIN, Ended, Run
from torch import nn

from edgemim.methods.branches import MaskedImageModel
from edgemim.training.distributed import World
from edgemim.training.loop import Trainer
from edgemim.training.meter import Meter
from edgemim.training.objective import Objective, StepOutput
from edgemim.training.optim import build_adamw
from edgemim.training.recipe import Plan, TrainingConfig

PARTS = 2  # the reference computes a step in two parts


def spoil(
    monkeypatch: pytest.MonkeyPatch, steps: range, spoiled: Callable[[MaskedImageModel, StepOutput], StepOutput]
) -> None:
    """Spoil the second part of the given steps (0-based) of the next run in this process."""
    forward, calls = MaskedImageModel.forward, [0]

    def spoiling(self: MaskedImageModel, *arguments: Any) -> StepOutput:
        step, part = divmod(calls[0], PARTS)
        calls[0] += 1
        output = forward(self, *arguments)
        return spoiled(self, output) if step in steps and part == 1 else output

    monkeypatch.setattr(MaskedImageModel, "forward", spoiling)


def nan_loss(_: MaskedImageModel, output: StepOutput) -> StepOutput:
    """A loss that is not a number."""
    return StepOutput(output.loss * float("nan"), output.metrics)


def infinite_gradient(model: MaskedImageModel, output: StepOutput) -> StepOutput:
    """A finite loss with an infinite gradient of one weight, as the square root has at zero."""
    weight = next(p for p in model.parameters() if p.requires_grad).flatten()[0]
    return StepOutput(output.loss + (weight - weight.detach()).abs().sqrt(), output.metrics)


@pytest.mark.parametrize("spoiled", [nan_loss, infinite_gradient])
def test_a_bad_step_changes_nothing(
    edgemim_here: Callable[..., Ended],
    images: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoiled: Callable[[MaskedImageModel, StepOutput], StepOutput],
) -> None:
    run = Run(tmp_path / "run")
    spoil(monkeypatch, range(5, 6), spoiled)
    every = ["--checkpoint-minutes", "0", "--keep-checkpoints", "20", "--epochs", "2", "--warmup-epochs", "0"]
    ended = edgemim_here([*PRETRAIN, *every, "--data", images, "--out", run.folder, "--workers", "0"])
    assert ended.code == 0, ended.output
    hashes = {path.name: run.checkpoint_hashes(i) for i, path in enumerate(run.checkpoints)}
    # The optimizer's file holds its step counts too. The average's own count of calls may go on; its weights do not.
    assert hashes["step-000000006"]["model.safetensors"] == hashes["step-000000005"]["model.safetensors"]
    assert hashes["step-000000006"]["optimizer.safetensors"] == hashes["step-000000005"]["optimizer.safetensors"]
    averages = [load(run.checkpoints[i] / "ema.safetensors") for i in (4, 5, 6)]
    assert all(torch.equal(averages[0][key], averages[1][key]) for key in averages[0])
    assert not all(torch.equal(averages[1][key], averages[2][key]) for key in averages[0])
    assert len({h["model.safetensors"] for h in hashes.values()}) == len(hashes) - 1  # the other steps did train
    assert run.record["results"]["nonfinite_steps"] == 1
    assert all(loss == loss for _, loss in run.metrics("loss"))  # NaN is not equal to itself


def load(path: Path) -> dict[str, torch.Tensor]:
    """An average's weights, without its count of calls."""
    from safetensors.torch import load_file

    return {key: value for key, value in load_file(path).items() if key != "n_averaged"}


def test_three_in_a_row_end_the_run_which_can_go_on_afterwards(
    edgemim_here: Callable[..., Ended], images: Path, tmp_path: Path, reference: Run
) -> None:
    run = Run(tmp_path / "run")
    command = [*PRETRAIN, "--data", images, "--out", run.folder, "--workers", "0"]
    with pytest.MonkeyPatch.context() as patch:
        spoil(patch, range(30, 10_000), nan_loss)
        ended = edgemim_here(command)
    ended.refused("not finite in 3 steps in a row before step 33", "no weight was touched", "--base-lr", code=1)
    assert run.record["status"] == "failed"
    assert run.record["results"]["images"]["drawn"] == 33 * 16
    assert run.saved_step == 32  # an epoch's end: its weights are those of step 30
    for path in sorted((run.folder / "checkpoints").rglob("*.safetensors")):
        assert all(torch.isfinite(value).all() for value in load(path).values()), path
    # The cause gone (here the bad steps themselves are part of the saved run), it resumes and ends.
    ended = edgemim_here([*command, "--resume"])
    assert ended.code == 0, ended.output
    assert "resuming at step 32 of 240" in ended.output
    assert run.model_hash != reference.model_hash  # two steps are missing from it


class BatchNormed(Objective):
    """A model whose forward pass itself changes buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.LazyLinear(2))

    @property
    def exported(self) -> nn.Module:
        return self.model

    def forward(self, images: torch.Tensor, keys: torch.Tensor, labels: torch.Tensor) -> StepOutput:
        return StepOutput(self.model(images).square().mean())


class Images:
    """A batch of floating-point images, for a value that no file can hold."""

    def __init__(self, value: float) -> None:
        self.images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * value
        self.labels = self.keys = torch.zeros(4, dtype=torch.int64)
        self.skipped: list[tuple[str, str]] = []

    def to(self, device: torch.device) -> Images:
        return self


def test_batch_norm_does_not_remember_a_bad_step(tmp_path: Path) -> None:
    torch.manual_seed(0)
    objective = BatchNormed()
    objective(torch.zeros(2, 3, 8, 8), *[torch.zeros(2)] * 2)
    config = TrainingConfig(batch_size=4, epochs=1, base_lr=0.1)
    optimizer = build_adamw(objective, weight_decay=0.05, betas=config.betas)
    alone = World(0, 1, torch.device("cpu"))
    trainer = Trainer(objective, optimizer, config, Plan(3, 3, 0), alone, tmp_path, data_fingerprint="", label="test")

    def batches() -> Iterator[Images]:
        yield from (Images(1.0), Images(float("inf")), Images(2.0))

    stream, meter, seen = batches(), Meter(alone.device), []
    for step in range(3):
        trainer.step(objective, stream, step, meter)
        seen.append({key: value.clone() for key, value in objective.state_dict().items() if "running" in key})
    assert all(torch.equal(seen[0][key], seen[1][key]) for key in seen[0])
    assert not any(torch.equal(seen[1][key], seen[2][key]) for key in seen[0])
    assert all(torch.isfinite(value).all() for value in seen[2].values())
