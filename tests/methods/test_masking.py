"""Masks from keys: reproducible whatever the batch, uniform over the grid, the count that the ratio says."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_training import keys_of

from edgemim.errors import UserError
from edgemim.methods.masking import (
    RandomMasking,
    UnitMasking,
    keyed_uniform,
    mask_by_noise,
    masking_for,
    visible_count,
)
from edgemim.models.encoder import TokenMask
from edgemim.models.sizes import HieraConfig, VitConfig

WORD = (1 << 64) - 1


def splitmix(key: int, position: int) -> float:
    """The published finaliser on unsigned 64-bit numbers, as Python integers."""
    x = (key + position * 0x9E3779B97F4A7C15) & WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & WORD
    x ^= x >> 31
    return (x >> 40) / 2**24


def test_noise_equals_the_published_hash() -> None:
    keys = torch.tensor([0, 1, 2**62 + 12345, 2**63 - 1])
    noise = keyed_uniform(keys, 9)
    for row, key in enumerate(keys.tolist()):
        for position in range(9):
            assert float(noise[row, position]) == splitmix(key, position + 1)


@pytest.mark.parametrize(("tokens", "ratio"), [(196, 0.75), (16, 0.5), (49, 0.6), (5, 0.0), (10, 0.85), (196, 0.99)])
def test_each_row_hides_the_same_number(tokens: int, ratio: float) -> None:
    mask = RandomMasking(ratio=ratio)(keys_of(50), tokens)
    kept = int(tokens * (1 - ratio))
    assert mask.visible.shape == (50, kept)
    assert (~mask.masked).sum(1).unique().tolist() == [kept]
    for masked, visible in zip(mask.masked, mask.visible, strict=True):
        assert torch.equal(visible, (~masked).nonzero().flatten())  # the same fact twice, in grid order


def test_a_mask_follows_its_key_alone() -> None:
    keys = keys_of(20)
    masking = RandomMasking(ratio=0.75)
    mask = masking(keys, 64)
    order = torch.randperm(20)
    assert torch.equal(masking(keys[order], 64).masked, mask.masked[order])
    assert torch.equal(masking(keys[7:8], 64).visible[0], mask.visible[7])
    assert len({tuple(row.tolist()) for row in mask.visible}) == 20  # different keys, different masks


def test_neighbouring_keys_give_unrelated_masks() -> None:
    mask = RandomMasking(ratio=0.5)(torch.arange(400), 64).masked.double()
    agreement = (mask[:-1] == mask[1:]).double().mean()
    assert abs(float(agreement) - 0.5) < 0.01


def test_every_patch_is_masked_equally_often() -> None:
    """Chi-square over 64 positions: below the 99.9 % quantile at 63 degrees of freedom, and not suspiciously even."""
    draws, tokens, ratio = 6000, 64, 0.75
    mask = RandomMasking(ratio=ratio)(keys_of(draws), tokens).masked
    # Counts of one position are binomial; a row has a fixed sum, hence the factor (n - 1) / n.
    variance = draws * ratio * (1 - ratio)
    statistic = float(((mask.sum(0) - draws * ratio) ** 2 / variance).sum()) * (tokens - 1) / tokens
    assert 32.0 < statistic < 103.4


def test_pairs_of_patches_are_masked_independently() -> None:
    mask = RandomMasking(ratio=0.5)(keys_of(4000, seed=1), 16).masked.double().numpy()
    correlation = np.corrcoef(mask.T)[~np.eye(16, dtype=bool)]
    # Exactly half are masked: -1/15 between any two.
    assert np.abs(correlation + 1 / 15).max() < 0.07


def test_the_smallest_noise_stays_visible() -> None:
    noise = torch.tensor([[0.9, 0.1, 0.5, 0.3], [0.2, 0.2, 0.2, 0.1]])
    mask = mask_by_noise(noise, 0.5)
    assert mask.visible.tolist() == [[1, 3], [0, 3]]  # of equal noise the first
    assert mask.masked.tolist() == [[True, False, True, False], [False, True, True, False]]


def test_a_ratio_that_hides_all_is_refused() -> None:
    with pytest.raises(UserError, match=r"0\.99 leaves none of 16"):
        RandomMasking(ratio=0.99).check(16)
    with pytest.raises(UserError, match="leaves none"):
        mask_by_noise(torch.rand(1, 4), 0.8)
    RandomMasking(ratio=0.99).check(196)
    assert visible_count(196, 0.75) == 49


def test_mask_units_are_hidden_as_a_whole_and_drawn_as_single_patches_are() -> None:
    """Hiera's: the published rule keeps int(units * (1 - ratio)) units, 29 of 49 at 0.4."""
    size = HieraConfig()
    masking = masking_for(RandomMasking(ratio=0.4), size)
    keys = keys_of(3)
    mask = masking(keys, size.tokens)
    units = RandomMasking(ratio=0.4)(keys, 49)
    blocks = mask.masked.view(3, 7, 2, 7, 2).transpose(2, 3).flatten(3)
    assert torch.equal(blocks.all(-1), blocks.any(-1))
    assert torch.equal(blocks.all(-1).flatten(1), units.masked)
    assert mask.visible.shape == (3, 29 * 4)
    assert torch.equal(mask.visible, TokenMask.of(mask.masked).visible)
    assert masking.ratio == 0.4
    with pytest.raises(UserError, match="none of 49"):
        masking_for(RandomMasking(ratio=0.99), size).check(size.tokens)


def test_masking_for_leaves_single_patches_alone_and_refuses_other_units() -> None:
    random = RandomMasking(ratio=0.5)
    assert masking_for(random, VitConfig()) is random
    with pytest.raises(UserError, match="mask units of 2 x 2 patches, and masking unit"):
        masking_for(UnitMasking(), HieraConfig())
