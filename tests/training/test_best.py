"""The best weights and the patience of a run: by hand, and through the loop however often that is stopped."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import NANO, TinyBatch, tiny_batches

from edgemim.edge.images import Preprocessing
from edgemim.models.weights import bare_vit
from edgemim.tasks.classification import ClassificationTask
from edgemim.training.best import BestWeights
from edgemim.training.distributed import World
from edgemim.training.loop import Outcome, Trainer
from edgemim.training.optim import build_adamw
from edgemim.training.recipe import Plan, TrainingConfig

ALONE = World(0, 1, torch.device("cpu"))
# Epochs of two steps; the figure after each, as an evaluation would find it.
FIGURES = {2: 10.0, 4: 30.0, 6: 20.0, 8: 30.0, 10: 25.0, 12: 40.0, 14: 1.0, 16: 2.0}


def test_the_first_of_the_best_is_kept_as_a_copy() -> None:
    best, weight = BestWeights(patience=2), torch.zeros(3)
    for step, figure in FIGURES.items():
        weight += 1
        best.note(step, figure, {"weight": weight})
        best.note(step, 99.0, {"weight": weight})  # measured again after a resume: counted once
        if best.exhausted:
            break
    assert (best.step, best.figure, best.measured_at, best.measured, best.unbeaten) == (4, 30.0, 8, 4, 2)
    assert best.weights["weight"].tolist() == [2, 2, 2]


def test_without_patience_it_never_has_enough_and_nan_is_no_gain() -> None:
    best = BestWeights()
    for step, figure in enumerate((5.0, float("nan"), 4.0, 5.0, 1.0), 1):
        best.note(step, figure, {})
    assert not best.exhausted
    assert (best.step, best.unbeaten) == (1, 4)


def test_it_survives_a_file() -> None:
    best, other = BestWeights(3), BestWeights(3)
    best.note(2, 7.5, {"a": torch.tensor([1.0])})
    best.note(4, 7.0, {"a": torch.tensor([2.0])})
    other.restore(json.loads(json.dumps(best.facts())), best.weights)
    assert other.facts() == best.facts() == {"step": 2, "figure": 7.5, "measured_at": 4, "measured": 2, "unbeaten": 1}
    assert torch.equal(other.weights["a"], torch.tensor([1.0]))


class Gone(Exception):
    """Stands for a process that ended between two steps."""


def until(batches: Iterator[TinyBatch], ends: bool) -> Iterator[TinyBatch]:
    yield from batches
    if ends:
        raise Gone


def measured(
    folder: Path, patience: int | None, stop: int = 16, figures: dict[int, float] = FIGURES, **changes: Any
) -> tuple[Trainer, Outcome | None, list[int]]:
    """Train a classifier, with a moving average, from the newest checkpoint to the step `stop`: trainer, outcome and the
    steps after which it was measured."""
    torch.manual_seed(0)
    model = bare_vit(NANO, num_classes=4)
    labels = ("a", "b", "c", "d")
    task = ClassificationTask(model, labels, Preprocessing(image_size=32), None, architecture={})
    settings = {"batch_size": 8, "base_lr": 0.1, "epochs": 8, "log_every": 2, "ema_decay": 0.5, **changes}
    config = TrainingConfig.model_validate(settings)
    plan, best, seen = Plan.of(config, 2), BestWeights(patience), []

    def evaluate(epoch: int, step: int) -> dict[str, float]:
        seen.append(step)
        best.note(step, figures[step], model.state_dict())
        return {"val_top1": figures[step]}

    trainer = Trainer(
        task,
        build_adamw(task, weight_decay=0.0, betas=(0.9, 0.95)),
        config,
        plan,
        ALONE,
        folder,
        data_fingerprint="data",
        label="test",
        evaluations=[evaluate],
        best=best,
    )
    start = trainer.restore()
    batches = until(tiny_batches(start, stop), stop < plan.total_steps)
    try:
        return trainer, trainer.run(batches, start), seen
    except Gone:
        return trainer, None, seen


def same(a: Trainer, b: Trainer) -> bool:
    ours, theirs = a.exported_state(), b.exported_state()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def test_a_run_ends_when_patience_does(tmp_path: Path) -> None:
    trainer, outcome, seen = measured(tmp_path / "patient", patience=2)
    assert (seen, outcome.steps if outcome else None) == ([2, 4, 6, 8], 8)
    assert trainer.best is not None
    assert trainer.best.step == 4
    _, outcome, seen = measured(tmp_path / "longer", patience=4)
    assert (seen[-1], outcome.steps if outcome else None) == (16, 16)


def test_the_average_of_the_best_step_is_what_is_kept(tmp_path: Path) -> None:
    """Its bits are those of the checkpoint of that step."""
    trainer, _, _ = measured(tmp_path / "run", patience=1, checkpoint_epochs=1)
    checkpoint = trainer.checkpoints.load_latest()
    assert checkpoint is not None
    assert checkpoint.step == 6
    other, _, _ = measured(tmp_path / "other", patience=None, stop=4)
    assert other.ema is not None
    expected = other.ema.module.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in trainer.exported_state().items())


@pytest.mark.parametrize("stops", [(3, 5), (4,), (8,), (1, 2, 6, 7)], ids=str)
def test_patience_is_exact_however_often_the_run_is_stopped(tmp_path: Path, stops: tuple[int, ...]) -> None:
    every = {"checkpoint_epochs": 0.5}  # after each step
    whole, outcome, _ = measured(tmp_path / "whole", patience=2, **every)
    for stop in stops:
        measured(tmp_path / "parts", 2, stop, **every)
    resumed, again, _ = measured(tmp_path / "parts", 2, **every)
    assert (outcome.steps, again.steps) == (8, 8) if outcome and again else False
    assert same(whole, resumed)
    assert whole.best is not None and resumed.best is not None
    assert whole.best.facts() == resumed.best.facts()
    lines = [json.loads(line) for line in (tmp_path / "parts" / "metrics.jsonl").read_text().splitlines()]
    figures = {line["step"]: line["val_top1"] for line in lines if "val_top1" in line}
    assert figures == {step: FIGURES[step] for step in (2, 4, 6, 8)}


def test_a_run_that_had_enough_trains_no_step_more(tmp_path: Path) -> None:
    first, _, _ = measured(tmp_path / "run", patience=1)
    again, outcome, seen = measured(tmp_path / "run", patience=1)
    assert outcome is not None
    assert outcome.steps == 6
    # Its last checkpoint was written before the last figure, which is found again.
    assert seen == [6]
    assert same(first, again)


def test_a_kill_between_checkpoint_and_evaluation_loses_no_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Trainer, done: int, log: object) -> None:
        if done == 4:
            raise Gone
        real(self, done, log)  # pyright: ignore[reportArgumentType]

    real = Trainer._call_hooks
    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "_call_hooks", killed)
        measured(tmp_path / "run", patience=2)
    resumed, outcome, seen = measured(tmp_path / "run", patience=2)
    assert seen == [4, 6, 8]
    assert outcome is not None
    assert outcome.steps == 8
    assert same(resumed, measured(tmp_path / "whole", patience=2)[0])
