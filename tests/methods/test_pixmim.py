"""PixMIM's target; its numbers are compared with the published code in tests/golden."""

from __future__ import annotations

import math

import torch
from tiny_training import NANO, NORMALIZATION, mask_of, nano_encoder, pixels

from edgemim.methods.mae import MaeConfig
from edgemim.methods.pixmim import PixMimConfig
from edgemim.methods.targets import LowPassTarget, low_pass_disc


def wave(cycles: int, side: int = 64) -> torch.Tensor:
    """A horizontal cosine in [0, 1] as a normalised image."""
    row = 0.5 + 0.25 * torch.cos(2 * math.pi * cycles * torch.arange(side) / side)
    return NORMALIZATION.normalize(row.view(1, 1, 1, side).expand(1, 3, side, side))


def test_low_waves_pass_and_high_ones_do_not() -> None:
    target = LowPassTarget(16, radius=10.0, normalization=NORMALIZATION)
    torch.testing.assert_close(target.smooth(wave(5)), wave(5), rtol=0, atol=1e-4)
    flat = NORMALIZATION.normalize(torch.full((1, 3, 64, 64), 0.5))
    torch.testing.assert_close(target.smooth(wave(15)), flat, rtol=0, atol=1e-4)


def test_a_disc_over_the_whole_spectrum_is_mae() -> None:
    torch.manual_seed(0)
    smooth = PixMimConfig(radius=100.0).build(nano_encoder(), NORMALIZATION, None)
    plain = MaeConfig().build(nano_encoder(), NORMALIZATION, None)
    plain.load_state_dict(smooth.state_dict())
    x, mask = NORMALIZATION.apply(pixels(2)), mask_of(2)
    torch.testing.assert_close(smooth.loss(x, mask).loss, plain.loss(x, mask).loss, rtol=1e-4, atol=1e-5)


def test_the_radius_follows_the_image() -> None:
    target = PixMimConfig().build(nano_encoder(), NORMALIZATION, None).branches[0].target
    assert isinstance(target, LowPassTarget)
    assert target.radius == 40 / 224 * NANO.image_size
    assert round(float(low_pass_disc(224, 224, 40.0).float().mean()), 3) == 0.1
