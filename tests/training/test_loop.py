"""The loop's promises: exact resume, no waiting for the device inside a step, bad steps that touch nothing, clean stops."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_training import NANO, NORMALIZATION, TinyBatch, nano_encoder, tiny_batches

from edgemim.edge.images import Preprocessing
from edgemim.errors import EdgemimError, Interrupted, SavedOnSignal, UserError
from edgemim.methods import FeatureDistillConfig, MaeConfig
from edgemim.models.normalization import Normalization
from edgemim.models.weights import bare_vit
from edgemim.tasks.classification import ClassificationTask, MixingConfig
from edgemim.tasks.distillation import ClassTeacher, Distillation, DistillationConfig
from edgemim.teachers import Teacher, TimmTeacher
from edgemim.training.checkpoint import CheckpointError, CheckpointFolder
from edgemim.training.distributed import World
from edgemim.training.loop import Trainer
from edgemim.training.meter import Meter
from edgemim.training.objective import Objective
from edgemim.training.optim import build_adamw, optimizer_tensors
from edgemim.training.recipe import Plan, TrainingConfig
from edgemim.training.schedule import warmup_cosine

ALONE = World(0, 1, torch.device("cpu"))
STEPS = 8
SETTINGS: dict[str, Any] = {"batch_size": 8, "base_lr": 0.1, "log_every": 2, "epochs": 4, "warmup_epochs": 1}


def mae() -> Objective:
    torch.manual_seed(0)
    return MaeConfig().build(nano_encoder(), NORMALIZATION, None)


@cache
def teacher() -> Teacher:
    """One for all tests: it is frozen."""
    torch.manual_seed(0)
    return TimmTeacher(model="test_resnet", pretrained=False).build(NANO.image_size, NANO.grid)


def distilled() -> Objective:
    frozen = teacher()  # first: making it draws random numbers
    torch.manual_seed(0)
    return FeatureDistillConfig().build(nano_encoder(), NORMALIZATION, frozen)


def classifier() -> Objective:
    torch.manual_seed(0)
    model = bare_vit(NANO, num_classes=4, drop_path=0.2)
    mixing = MixingConfig(mixup=0.2, cutmix=1.0, smoothing=0.1)
    labels = ("a", "b", "c", "d")
    return ClassificationTask(model, labels, Preprocessing(image_size=32), None, architecture={}, mixing=mixing)


def listening() -> Objective:
    """A classifier with a second head for a teacher of other eyes and another order of classes."""
    torch.manual_seed(1)
    frozen = ClassTeacher(bare_vit(NANO, num_classes=4), Normalization((0.1,) * 3, (0.5,) * 3), 32, "", (3, 1, 0, 2))
    told = Distillation(DistillationConfig(teacher="other"), frozen)
    torch.manual_seed(0)
    model, labels = bare_vit(NANO, num_classes=4, distilled=True), ("a", "b", "c", "d")
    mixing, preprocessing = MixingConfig(mixup=0.2), Preprocessing(image_size=32)
    return ClassificationTask(model, labels, preprocessing, None, architecture={}, mixing=mixing, distillation=told)


OBJECTIVES = [mae, distilled, classifier, listening]


def trainer_of(
    objective: Objective, folder: Path, *, hooks: Any = (), evaluations: Any = (), data: str = "data", **changes: Any
) -> Trainer:
    config = TrainingConfig.model_validate({**SETTINGS, **changes})
    plan = Plan.of(config, 2)
    optimizer = build_adamw(objective, weight_decay=config.weight_decay, betas=config.betas)
    watching = {"hooks": hooks, "evaluations": evaluations}
    return Trainer(objective, optimizer, config, plan, ALONE, folder, data_fingerprint=data, label="test", **watching)


def train(objective: Objective, folder: Path, stop: int = STEPS, **changes: Any) -> Trainer:
    """Train from the newest checkpoint on, to the step `stop`."""
    trainer = trainer_of(objective, folder, **changes)
    start = trainer.restore()
    parts, count = trainer.config.accumulate, trainer.config.batch_size // trainer.config.accumulate
    batches = tiny_batches(start * parts, stop * parts, count=count)
    if stop < trainer.plan.total_steps:
        batches = interrupted_after(batches)
        with pytest.raises(Gone):
            trainer.run(batches, start)
    else:
        trainer.run(batches, start)
    return trainer


class Gone(Exception):
    """Stands for a process that ended between two steps."""


def interrupted_after(batches: Iterator[TinyBatch]) -> Iterator[TinyBatch]:
    yield from batches
    raise Gone


def weights(objective: Objective) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in objective.state_dict().items()}


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("build", OBJECTIVES)
@pytest.mark.parametrize("changes", [{}, {"ema_decay": 0.9, "clip_grad": 0.5, "accumulate": 2}], ids=["plain", "full"])
def test_a_resumed_run_ends_at_the_same_bits(tmp_path: Path, build: Any, changes: dict[str, Any]) -> None:
    every = {**changes, "checkpoint_epochs": 0.5}  # after each step
    whole = build()
    undisturbed = train(whole, tmp_path / "whole", **every)
    for stop in (3, 5):
        train(build(), tmp_path / "parts", stop, **every)
    last = build()
    resumed = train(last, tmp_path / "parts", **every)
    assert equal(weights(last), weights(whole))
    assert equal(resumed.exported_state(), undisturbed.exported_state())
    assert vars(resumed.tally).items() >= {"seen": 8 * STEPS, "unreadable": 0}.items()
    assert not equal(weights(last), weights(build()))  # it did train


def test_two_runs_are_the_same_and_another_seed_is_not(tmp_path: Path) -> None:
    objectives = [classifier() for _ in range(3)]
    for i, (objective, seed) in enumerate(zip(objectives, (0, 0, 1), strict=True)):
        train(objective, tmp_path / str(i), seed=seed)
    assert equal(weights(objectives[0]), weights(objectives[1]))
    assert not equal(weights(objectives[0]), weights(objectives[2]))


def test_accumulated_parts_give_the_whole_batchs_step(tmp_path: Path) -> None:
    whole, parts = mae(), mae()
    batch = next(tiny_batches(0, 1, count=8))
    halves = [TinyBatch(batch.images[i : i + 4], batch.labels[i : i + 4], batch.keys[i : i + 4]) for i in (0, 4)]
    one = trainer_of(whole, tmp_path / "a")
    two = trainer_of(parts, tmp_path / "b", accumulate=2)
    for trainer, stream in ((one, [batch]), (two, halves)):
        # Step 2: the rate of step 0 is zero.
        trainer.step(trainer.wrap(), iter(stream), 2, Meter(ALONE.device))
    # Adam's first moment is a tenth of the gradient; the weights themselves move by its sign, rounding included.
    moments = [optimizer_tensors(t.optimizer, t.objective) for t in (one, two)]
    for key in (key for key in moments[0] if key.endswith("exp_avg")):
        tolerance = 1e-4 * float(moments[0][key].abs().max())
        torch.testing.assert_close(moments[1][key], moments[0][key], rtol=0, atol=tolerance)


HOST = ("item", "__bool__", "__float__", "__int__", "__index__", "tolist", "cpu", "numpy", "__array__", "nonzero")


def forbid_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything through which Python reads a tensor's values raises: on a GPU each of them waits for the device."""

    def waits(self: torch.Tensor, *_: object, **__: object) -> None:
        raise AssertionError("a step waited for the device")

    for name in HOST:
        monkeypatch.setattr(torch.Tensor, name, waits)


def test_the_guard_itself_works() -> None:
    readers = {
        "item": lambda x: x.item(),
        "bool": bool,
        "float": float,
        "list": lambda x: x.tolist(),
        "if": lambda x: 1 if x > 0 else 0,
    }
    for name, read in readers.items():
        with pytest.MonkeyPatch.context() as patch:
            forbid_waiting(patch)
            with pytest.raises(AssertionError, match="waited"):
                read(torch.ones(()))
        assert read(torch.ones(())) in (1, True), name


@pytest.mark.parametrize("build", OBJECTIVES)
@pytest.mark.parametrize("changes", [{}, {"clip_grad": 0.5, "accumulate": 2}], ids=["plain", "full"])
def test_no_step_waits_for_the_device(tmp_path: Path, build: Any, changes: dict[str, Any]) -> None:
    objective = build()
    trainer = trainer_of(objective, tmp_path, **changes)
    model, meter = trainer.wrap(), Meter(ALONE.device)
    model.train()
    parts = trainer.config.accumulate
    batches = list(tiny_batches(0, 3 * parts, count=8 // parts))
    before = weights(objective)
    with pytest.MonkeyPatch.context() as patch:
        forbid_waiting(patch)
        stream = iter(batches)
        for step in range(3):
            trainer.step(model, stream, step, meter)
    assert not equal(weights(objective), before)
    assert meter.images == 24


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no usable CUDA device")
@pytest.mark.parametrize("build", OBJECTIVES)
def test_no_step_waits_for_a_real_device(tmp_path: Path, build: Any) -> None:
    """torch's own detector, which also sees copies from the host."""
    device = torch.device("cuda")
    objective = build().to(device)
    for branch in getattr(objective, "branches", ()):
        if hasattr(branch.target, "teacher"):
            branch.target.teacher.to(device)
    config = TrainingConfig.model_validate({**SETTINGS, "clip_grad": 0.5, "ema_decay": 0.9})
    optimizer = build_adamw(objective, weight_decay=0.05, betas=config.betas)
    world = World(0, 1, device)
    trainer = Trainer(
        objective, optimizer, config, Plan.of(config, 2), world, tmp_path, data_fingerprint="", label="test"
    )
    model, meter = trainer.wrap(), Meter(device)
    stream = iter([batch.to(device) for batch in tiny_batches(0, 4)])
    trainer.step(model, stream, 0, meter)  # first use allocates and loads kernels
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(1, 4):
            trainer.step(model, stream, step, meter)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_rates_follow_the_schedule_and_the_groups_share(tmp_path: Path) -> None:
    trainer = trainer_of(mae(), tmp_path)
    trainer.optimizer.param_groups[0]["lr_scale"] = 0.5
    stream = tiny_batches(0, 4)
    for step in range(4):
        trainer.step(trainer.objective, stream, step, Meter(ALONE.device))
        rate = warmup_cosine(step, total_steps=STEPS, warmup_steps=2, peak=0.1 * 8 / 256, final=0.0)
        first, *others = trainer.optimizer.param_groups
        assert first["lr"] == pytest.approx(0.5 * rate)
        assert all(group["lr"] == pytest.approx(rate) for group in others)


def test_the_moving_average_is_one(tmp_path: Path) -> None:
    objective = mae()
    trainer = trainer_of(objective, tmp_path, ema_decay=0.75)
    stream, name = tiny_batches(0, 4), "blocks.0.mlp.fc1.weight"
    history = []
    for step in range(4):
        trainer.step(objective, stream, step + 1, Meter(ALONE.device))
        history.append(objective.exported.state_dict()[name].clone())
    average = history[0]  # torch's AveragedModel starts as a copy
    for value in history[1:]:
        average = 0.75 * average + 0.25 * value
    torch.testing.assert_close(trainer.exported_state()[name], average, rtol=1e-5, atol=1e-7)


@dataclass
class Poison:
    """Turns the loss of chosen forwards into something that is not finite."""

    steps: set[int]
    value: float = float("nan")
    seen: int = 0

    def __call__(self, _module: Any, _inputs: Any, output: Any) -> Any:
        self.seen += 1
        factor = self.value if self.seen - 1 in self.steps else 1.0
        return type(output)(output.loss * factor, output.metrics)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_bad_step_touches_no_weight(tmp_path: Path, value: float) -> None:
    objective = mae()
    trainer = trainer_of(objective, tmp_path, ema_decay=0.9)
    objective.register_forward_hook(Poison({1}, value))
    stream, meter = tiny_batches(0, 3), Meter(ALONE.device)
    trainer.step(objective, stream, 2, meter)
    before, averaged = weights(objective), trainer.ema
    trainer.step(objective, stream, 2, meter)
    assert equal(weights(objective), before)
    assert averaged is not None
    trainer.step(objective, stream, 2, meter)
    assert not equal(weights(objective), before)
    figures, worst = meter.read(ALONE)
    assert (figures["nonfinite_steps"], worst) == (1.0, 1)
    assert all(torch.isfinite(v).all() for v in weights(objective).values())


def test_single_bad_steps_are_counted_three_in_a_row_end_the_run(tmp_path: Path) -> None:
    objective = mae()
    objective.register_forward_hook(Poison({1, 4, 6}))
    trainer = train(objective, tmp_path / "a")
    assert trainer.tally.nonfinite_steps == 3
    objective = mae()
    objective.register_forward_hook(Poison({3, 4, 5}))
    with pytest.raises(EdgemimError, match=r"3 steps in a row.*--base-lr") as error:
        train(objective, tmp_path / "b")
    assert error.value.exit_code == 1
    assert all(torch.isfinite(v).all() for v in weights(objective).values())


@pytest.mark.parametrize(
    ("name", "kind", "code"),
    [(signal.SIGTERM, SavedOnSignal, 75), (signal.SIGUSR1, SavedOnSignal, 75), (signal.SIGINT, Interrupted, 130)],
)
def test_a_signal_saves_at_the_step_and_a_resume_ends_at_the_same_bits(
    tmp_path: Path, name: signal.Signals, kind: type[EdgemimError], code: int
) -> None:
    def with_signal(at: int) -> Iterator[TinyBatch]:
        for number, batch in enumerate(tiny_batches(0, STEPS)):
            if number == at:
                os.kill(os.getpid(), name)
            yield batch

    stopped = mae()
    with pytest.raises(kind, match=r"saved at step 4 of 8 .*--resume") as error:
        trainer_of(stopped, tmp_path / "a").run(with_signal(3), 0)
    assert error.value.exit_code == code
    resumed, whole = mae(), mae()
    train(resumed, tmp_path / "a")
    train(whole, tmp_path / "b")
    assert equal(weights(resumed), weights(whole))


def test_changed_settings_and_data_are_refused(tmp_path: Path) -> None:
    train(mae(), tmp_path, stop=4)
    with pytest.raises(UserError, match=r"seed: 0 -> 1.*--allow-change"):
        trainer_of(mae(), tmp_path, seed=1).restore()
    with pytest.raises(UserError, match="data: data -> other"):
        trainer_of(mae(), tmp_path, data="other").restore()
    assert trainer_of(mae(), tmp_path, workers=7, log_every=1).restore() == 4
    assert trainer_of(mae(), tmp_path, seed=1, allow_change=True).restore() == 4


def test_too_many_unreadable_images_end_the_run(tmp_path: Path) -> None:
    def with_faults() -> Iterator[TinyBatch]:
        for batch in tiny_batches(0, STEPS):
            batch.skipped.append(("images/broken.jpg", "truncated"))
            yield batch

    with pytest.raises(UserError, match=r"12\.5% of the images .*limit 1\.0%.*images/broken\.jpg: truncated"):
        trainer_of(mae(), tmp_path / "a").run(with_faults(), 0)
    tolerant = trainer_of(mae(), tmp_path / "b", max_unreadable=0.2)
    tolerant.run(with_faults(), 0)
    assert tolerant.tally.unreadable == STEPS
    assert tolerant.tally.reasons == {"images/broken.jpg": "truncated"}


def test_hooks_come_after_each_epoch_in_evaluation_mode(tmp_path: Path) -> None:
    objective = mae()
    calls = []

    def hook(epoch: int, step: int) -> dict[str, float]:
        calls.append((epoch, step, objective.training))
        return {"knn_top1": float(epoch)}

    train(objective, tmp_path, hooks=[hook])
    assert calls == [(1, 2, False), (2, 4, False), (3, 6, False), (4, 8, False)]
    assert '"knn_top1": 4.0' in (tmp_path / "metrics.jsonl").read_text()


def test_evaluations_see_the_weights_that_the_run_hands_on(tmp_path: Path) -> None:
    """With a moving average: accuracy is its, pictures are of what is trained, and training goes on as without them."""
    plain = train(mae(), tmp_path / "plain", ema_decay=0.5)
    objective, trained, evaluated = mae(), [], []

    def weight() -> float:
        return float(next(objective.exported.parameters()).detach().sum())

    def hook(epoch: int, step: int) -> dict[str, float]:
        trained.append(weight())
        return {}

    def evaluation(epoch: int, step: int) -> dict[str, float]:
        evaluated.append(weight())
        return {"knn_top1": 1.0}

    watched = train(objective, tmp_path / "watched", ema_decay=0.5, hooks=[hook], evaluations=[evaluation])
    assert len(set(trained)) == len(set(evaluated)) == 4
    assert not set(trained) & set(evaluated)
    assert watched.ema is not None
    assert evaluated[-1] == float(next(watched.ema.module.parameters()).detach().sum())
    assert trained[-1] == weight()
    for ours, theirs in ((watched.exported_state(), plain.exported_state()), (objective, plain.objective)):
        ours, theirs = (x if isinstance(x, dict) else x.state_dict() for x in (ours, theirs))
        assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []


def test_checkpoints_come_when_due(tmp_path: Path) -> None:
    train(mae(), tmp_path / "epochs", checkpoint_epochs=2)
    assert [path.name for path in (tmp_path / "epochs" / "checkpoints").glob("step-*")] != []
    kept = sorted(path.name for path in (tmp_path / "epochs" / "checkpoints").glob("step-*"))
    assert kept == ["step-000000004", "step-000000008"]
    train(mae(), tmp_path / "clock", checkpoint_epochs=100, checkpoint_minutes=0)
    kept = sorted(path.name for path in (tmp_path / "clock" / "checkpoints").glob("step-*"))
    assert kept == ["step-000000007", "step-000000008"]


def test_a_disk_that_fills_up_is_borne_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failures = {2, 3}
    real, calls = CheckpointFolder.save, [0]

    def sometimes(self: CheckpointFolder, checkpoint: Any) -> Path:
        calls[0] += 1
        if calls[0] in failures:
            raise CheckpointError("cannot write checkpoint: no space")
        return real(self, checkpoint)

    monkeypatch.setattr(CheckpointFolder, "save", sometimes)
    train(mae(), tmp_path / "a", checkpoint_minutes=0)
    calls[0] = 0
    failures.add(4)
    with pytest.raises(CheckpointError, match="no space"):
        train(mae(), tmp_path / "b", checkpoint_minutes=0)
    calls[0] = 0
    failures = {STEPS}  # the last one must not fail
    with pytest.raises(CheckpointError):
        train(mae(), tmp_path / "c", checkpoint_minutes=0)


def test_a_finished_run_resumes_to_its_end_at_once(tmp_path: Path) -> None:
    first = mae()
    train(first, tmp_path)
    second = mae()
    trainer = trainer_of(second, tmp_path)
    start = trainer.restore()
    outcome = trainer.run(iter(()), start)
    assert (start, outcome.steps) == (STEPS, STEPS)
    assert equal(weights(second), weights(first))
