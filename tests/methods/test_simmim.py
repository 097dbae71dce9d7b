"""SimMIM's squares and branch; its numbers are compared with the published code in tests/golden."""

from __future__ import annotations

import pytest
import torch
from tiny_training import NORMALIZATION, keys_of, nano_encoder, pixels

from edgemim.errors import UserError
from edgemim.methods.masking import UnitMasking
from edgemim.methods.simmim import SimMimConfig
from edgemim.methods.targets import PixelTarget


def test_whole_squares_are_hidden_and_as_many_as_published() -> None:
    masking = UnitMasking(ratio=0.6, unit=2, grid=(14, 14))
    mask = masking(keys_of(16), 196)
    assert (mask.masked.sum(1) == 120).all()  # 30 of 49 squares
    squares = mask.masked.view(16, 7, 2, 7, 2)
    assert torch.equal(squares.amin((2, 4)), squares.amax((2, 4)))
    assert not mask.masked.gather(1, mask.visible).any()
    assert (mask.visible.diff(dim=1) > 0).all()
    assert torch.equal(masking(keys_of(16)[3:4], 196).masked[0], mask.masked[3])


def test_every_square_is_hidden_equally_often() -> None:
    mask = UnitMasking(ratio=0.5, unit=2, grid=(4, 4))(keys_of(2000), 16)
    assert (mask.masked.double().mean(0) - 0.5).abs().max() < 0.05


def test_raw_pixels_and_a_linear_layer() -> None:
    model = SimMimConfig().build(nano_encoder(), NORMALIZATION, None)
    (branch,) = model.branches
    assert branch.target == PixelTarget(8, normalize=False)
    assert branch.loss == "l1"
    x = NORMALIZATION.apply(pixels(2))
    mask = model.masking(keys_of(2), 16)
    error = (branch.decoder(model.encode(x, mask), mask) - branch.target(x, mask)).abs().mean(-1)
    torch.testing.assert_close(model.loss(x, mask).loss, error[mask.masked].mean())
    painted = model.reconstruct(pixels(2), keys_of(2))
    assert painted is not None


def test_squares_that_do_not_fill_the_grid_are_refused() -> None:
    with pytest.raises(UserError, match="do not fill"):
        SimMimConfig(unit=3).build(nano_encoder(), NORMALIZATION, None)
    with pytest.raises(UserError, match="hides all"):
        SimMimConfig(unit=4).build(nano_encoder(), NORMALIZATION, None)
