"""Figures: means over good steps, runs of bad ones, and the share of time spent waiting for data."""

from __future__ import annotations

import time

import pytest
import torch
from tiny_training import NANO  # noqa: F401 (one thread)

from edgemim.training.distributed import World
from edgemim.training.meter import Meter

ALONE = World(0, 1, torch.device("cpu"))


def add(meter: Meter, loss: float, bad: bool = False) -> None:
    meter.add({"loss": torch.tensor(loss)}, torch.tensor(float(bad)))


def test_means_leave_bad_steps_out() -> None:
    meter = Meter(ALONE.device)
    for loss, bad in ((1.0, False), (float("nan"), True), (3.0, False), (float("inf"), True)):
        add(meter, loss, bad)
    figures, worst = meter.read(ALONE)
    assert figures["loss"] == 2.0
    assert figures["nonfinite_steps"] == 2.0
    assert worst == 1


def test_a_run_of_bad_steps_is_counted_across_two_lines() -> None:
    meter = Meter(ALONE.device)
    add(meter, 1.0)
    add(meter, 0.0, bad=True)
    assert meter.read(ALONE)[1] == 1
    add(meter, 0.0, bad=True)
    add(meter, 0.0, bad=True)
    assert meter.read(ALONE)[1] == 3
    add(meter, 1.0)
    assert meter.read(ALONE)[1] == 0


def test_only_bad_steps_give_no_division_by_zero() -> None:
    meter = Meter(ALONE.device)
    add(meter, float("nan"), bad=True)
    assert meter.read(ALONE)[0]["loss"] == 0.0


def test_rate_and_wait() -> None:
    meter = Meter(ALONE.device)

    def slow():
        for number in range(2):
            time.sleep(0.05)
            yield number

    batches = slow()
    for _ in range(2):
        meter.wait_for(batches)
        meter.images += 16
        add(meter, 1.0)
    time.sleep(0.1)
    figures, _ = meter.read(ALONE)
    assert 32 / 0.4 < figures["images_per_s"] < 32 / 0.2
    assert 0.2 < figures["data_wait"] < 0.7
    assert meter.total_images == 32
    meter.images += 8
    add(meter, 1.0)
    figures, _ = meter.read(ALONE)
    assert figures["data_wait"] == 0.0
    assert meter.total_images == 40
    assert meter.total_wait == pytest.approx(0.1, abs=0.08)
