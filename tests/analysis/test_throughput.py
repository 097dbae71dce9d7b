"""Timing of real steps of the training loop."""

from __future__ import annotations

import time

import pytest
import torch
from tiny_training import NORMALIZATION, nano_encoder

from edgemim.analysis.throughput import measure, timed, training_step
from edgemim.methods import MaeConfig
from edgemim.training.recipe import TrainingConfig

CPU = torch.device("cpu")


def test_a_step_is_the_loops_own_and_moves_the_weights() -> None:
    model = MaeConfig().build(nano_encoder(), NORMALIZATION, None)
    config = TrainingConfig(batch_size=8, accumulate=2, base_lr=0.1, device="cpu")
    before = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    training_step(model, config, CPU, (3, 32, 32))()
    after = dict(model.named_parameters())
    assert all(not torch.equal(value, after[name]) for name, value in before.items())


def test_the_rate_is_images_over_time() -> None:
    config = TrainingConfig(batch_size=8, device="cpu")
    speed = measure(lambda: time.sleep(0.02), config, CPU, seconds=0.1)
    assert speed.steps >= 3
    assert speed.images_per_s == pytest.approx(8 / 0.02, rel=0.3)
    assert (speed.batch_size, speed.device, speed.threads) == (8, "cpu", torch.get_num_threads())


def test_time_of_several_steps() -> None:
    assert timed(lambda: time.sleep(0.01), 3, CPU) >= 0.03
