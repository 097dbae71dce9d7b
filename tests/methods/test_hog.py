"""Histograms of oriented gradients; they are compared with the published code in tests/golden."""

from __future__ import annotations

import pytest
import torch
from tiny_training import NORMALIZATION, pixels

from edgemim.errors import UserError
from edgemim.methods.hog import HogTarget, hog_target
from edgemim.models.encoder import TokenMask

NO_MASK = TokenMask(torch.zeros(1, 16, dtype=torch.bool), torch.arange(16)[None])


def test_a_ramp_votes_for_one_orientation() -> None:
    """Brightness that rises to the right: gx < 0, gy = 0, angle -pi/2, bin floor(-4.5) mod 9 = 4."""
    ramp = torch.arange(32.0).view(1, 1, 1, 32).expand(1, 3, 32, 32)
    found = HogTarget(8).histograms(ramp)
    inside = found[..., 1:-1, 1:-1]
    assert torch.equal(inside[:, :, 4], torch.ones_like(inside[:, :, 4]))
    assert float(inside.sum()) == float(inside[:, :, 4].sum())


def test_histograms_have_length_one_and_know_no_brightness_or_contrast() -> None:
    x = NORMALIZATION.apply(pixels(2))
    found = HogTarget(8).histograms(x)
    assert found.shape == (2, 3, 9, 8, 8)
    torch.testing.assert_close(found.norm(dim=2), torch.ones(2, 3, 8, 8))
    torch.testing.assert_close(HogTarget(8).histograms(3 * x + 1), found, rtol=1e-3, atol=1e-3)


def test_a_patch_holds_its_own_cells() -> None:
    target = HogTarget(8)
    x = NORMALIZATION.apply(pixels(1))
    rows = target(x, NO_MASK)
    assert rows.shape == (1, 16, target.channels) == (1, 16, 108)
    cells = target.histograms(x)[0].flatten(0, 1)
    for patch in (0, 6, 15):
        top, left = 2 * (patch // 4), 2 * (patch % 4)
        assert torch.equal(rows[0, patch], cells[:, top : top + 2, left : left + 2].flatten())


def test_a_step_in_bfloat16_sees_the_same_histograms() -> None:
    images = NORMALIZATION.apply(pixels(2))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = HogTarget(8).histograms(images)
    assert torch.equal(found, HogTarget(8).histograms(images))


def test_smaller_cells_and_other_bins() -> None:
    """Four cells along a patch's side: each is the histogram of its own pixels, in the order of the cells."""
    torch.manual_seed(0)
    images = torch.randn(1, 3, 32, 32)
    target = hog_target(16, bins=6, cells=4)
    assert target.channels == 3 * 6 * 16
    labels = target(images, TokenMask(torch.zeros(1, 4, dtype=torch.bool), torch.empty(0))).view(4, 3, 6, 4, 4)
    cells = HogTarget(4, 6, cells=1).histograms(images)[0]
    torch.testing.assert_close(labels[3], cells[:, :, 4:, 4:])


def test_cells_that_do_not_fill_a_patch_are_refused() -> None:
    with pytest.raises(UserError, match="cut a patch into 3 x 3 cells; a patch_size of 16 is no multiple of 3"):
        hog_target(16, cells=3)
