"""The learning rate against the formula of MAE's published loop, and its ends."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from edgemim.training.schedule import warmup_cosine, warmup_poly


def published(epoch: float, *, lr: float, min_lr: float, warmup_epochs: float, epochs: float) -> float:
    """MAE's rule, in fractional epochs."""
    if epoch < warmup_epochs:
        return lr * epoch / warmup_epochs
    progress = (epoch - warmup_epochs) / (epochs - warmup_epochs)
    return min_lr + (lr - min_lr) * 0.5 * (1.0 + math.cos(math.pi * progress))


@pytest.mark.parametrize(("per_epoch", "warmup", "epochs"), [(7, 3, 10), (100, 5, 20), (1, 1, 4), (13, 0, 2)])
def test_every_step_of_a_run(per_epoch: int, warmup: int, epochs: int) -> None:
    for step in range(per_epoch * epochs):
        ours = warmup_cosine(
            step, total_steps=per_epoch * epochs, warmup_steps=per_epoch * warmup, peak=2.4e-3, final=1e-6
        )
        wanted = published(step / per_epoch, lr=2.4e-3, min_lr=1e-6, warmup_epochs=warmup, epochs=epochs)
        assert ours == pytest.approx(wanted, rel=1e-9, abs=1e-15)


def test_starts_at_zero_peaks_after_warm_up_and_ends_at_the_floor() -> None:
    rates = [warmup_cosine(s, total_steps=50, warmup_steps=10, peak=1.0, final=0.1) for s in range(51)]
    assert rates[0] == 0.0
    assert rates[10] == max(rates) == 1.0
    assert rates[50] == pytest.approx(0.1)
    assert all(a < b for a, b in pairwise(rates[:11]))
    assert all(a > b for a, b in pairwise(rates[10:]))


def test_a_run_of_warm_up_alone_still_has_a_rate() -> None:
    assert warmup_cosine(1, total_steps=1, warmup_steps=1, peak=1.0, final=0.0) == 1.0


@pytest.mark.parametrize("power", [0.9, 1.0, 2.0])
def test_a_falling_power_is_torchs_after_warmup(power: float) -> None:
    """torch's PolynomialLR, stepped, is the independent reference."""
    torch = pytest.importorskip("torch")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    reference = torch.optim.lr_scheduler.PolynomialLR(optimizer, total_iters=40, power=power)
    for step in range(10, 51):
        ours = warmup_poly(step, total_steps=50, warmup_steps=10, peak=1.0, final=0.0, power=power)
        assert ours == pytest.approx(optimizer.param_groups[0]["lr"], abs=1e-9)
        optimizer.step()
        reference.step()
    rates = [warmup_poly(s, total_steps=50, warmup_steps=10, peak=1.0, final=0.1, power=power) for s in range(51)]
    assert rates[:11] == pytest.approx([s / 10 for s in range(11)])
    assert rates[50] == pytest.approx(0.1)
