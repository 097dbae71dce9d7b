"""MaskFeat: histograms and blocks; both are compared with the published code in tests/golden."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from tiny_training import NORMALIZATION, keys_of, nano_encoder, pixels

from edgemim.errors import UserError
from edgemim.methods.decoders import LinearDecoder
from edgemim.methods.maskfeat import MaskFeatConfig
from edgemim.methods.masking import BlockMasking, block_mask
from edgemim.models.sizes import VitConfig


def test_no_patch_is_dropped_and_hidden_ones_carry_the_mask_token() -> None:
    model = MaskFeatConfig().build(nano_encoder(), NORMALIZATION, None)
    assert isinstance(model.branches[0].decoder, LinearDecoder)
    assert model.mask_token is not None
    output = model(pixels(2), keys_of(2), None)
    output.loss.backward()
    assert bool(model.mask_token.grad.any())  # pyright: ignore[reportOptionalMemberAccess]
    assert all(not name.startswith("mask") for name in model.exported.state_dict())


def test_blocks_hide_the_same_number_from_the_key_alone() -> None:
    masking = BlockMasking(ratio=0.4, grid=(14, 14))
    keys = keys_of(8)
    mask = masking(keys, 196)
    assert (mask.masked.sum(1) == 78).all()
    assert torch.equal(masking(keys[5:6], 196).masked[0], mask.masked[5])
    assert not mask.masked.gather(1, mask.visible).any()
    assert (mask.visible.diff(dim=1) > 0).all()


@pytest.mark.parametrize(("side", "count"), [(4, 6), (2, 3), (3, 8)])
def test_small_grids_are_filled_up_to_the_number(side: int, count: int) -> None:
    for seed in range(20):
        assert int(np.sum(block_mask(random.Random(seed), (side, side), count, 1))) == count


def test_odd_patches_and_empty_masks_are_refused() -> None:
    odd = VitConfig(width=24, depth=1, heads=3, patch_size=7, image_size=28)
    with pytest.raises(UserError, match="is odd"):
        MaskFeatConfig().build(nano_encoder(odd), NORMALIZATION, None)
    with pytest.raises(UserError, match="hides none"):
        MaskFeatConfig(mask_ratio=0.01).build(nano_encoder(), NORMALIZATION, None)
