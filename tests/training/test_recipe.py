"""Plans of steps, and which settings a resumed run may change."""

from __future__ import annotations

import pydantic
import pytest
import torch
from tiny_training import NANO  # noqa: F401 (one thread)

from edgemim.training.recipe import Plan, TrainingConfig, changed_settings, due


def test_plan_counts_steps() -> None:
    config = TrainingConfig(epochs=400, warmup_epochs=40)
    assert Plan.of(config, 312) == Plan(312, 400 * 312, 40 * 312)
    assert Plan.of(TrainingConfig(epochs=0.5, warmup_epochs=0.1), 10) == Plan(10, 5, 1)


def test_a_plan_always_has_a_step_after_warm_up() -> None:
    assert Plan.of(TrainingConfig(epochs=1, warmup_epochs=40), 5) == Plan(5, 5, 4)
    assert Plan.of(TrainingConfig(epochs=0.01), 5) == Plan(5, 1, 0)


def test_peak_rate_scales_with_the_batch() -> None:
    assert TrainingConfig(base_lr=1.5e-4, batch_size=4096).peak_lr == pytest.approx(2.4e-3)


def test_changes_that_matter_are_named_others_are_free() -> None:
    before = TrainingConfig().model_dump(mode="json")
    assert changed_settings(before, {**before, "workers": 5, "out": "elsewhere", "log_every": 3}) == []
    found = changed_settings(before, {**before, "seed": 1, "batch_size": 128, "new_key": True})
    assert found == ["batch_size: 256 -> 128", "new_key: None -> True", "seed: 0 -> 1"]


def test_precision() -> None:
    cpu = torch.device("cpu")
    assert TrainingConfig().autocast_dtype(cpu) is None
    assert TrainingConfig(precision="fp32").autocast_dtype(cpu) is None
    assert TrainingConfig(precision="bf16").autocast_dtype(cpu) is torch.bfloat16


def test_readers_leave_a_core_to_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(6)), raising=False)
    assert TrainingConfig().reader_processes(1) == 5
    assert TrainingConfig().reader_processes(2) == 2
    assert TrainingConfig().reader_processes(8) == 0
    assert TrainingConfig(workers=3).reader_processes(8) == 3


@pytest.mark.parametrize(
    "wrong", [{"epochs": 0}, {"batch_size": 0}, {"accumulate": 0}, {"base_lr": 0}, {"seed": -1}, {"ema_decay": 1.0}]
)
def test_settings_without_meaning_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(pydantic.ValidationError, match=next(iter(wrong))):
        TrainingConfig.model_validate(wrong)


def test_what_is_due_after_an_epoch() -> None:
    assert [epoch for epoch in range(1, 13) if due(epoch, 5)] == [5, 10]
    assert [epoch for epoch in range(1, 4) if due(epoch, 0.2)] == [1, 2, 3]
    assert not any(due(epoch, 0) for epoch in range(10))
