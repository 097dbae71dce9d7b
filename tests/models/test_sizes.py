"""Named sizes and what a size may not be."""

from __future__ import annotations

import pydantic
import pytest

from edgemim.models.sizes import SIZES, HieraConfig, VitConfig


def test_sizes_of_the_lightweight_study() -> None:
    assert SIZES["vit_tiny"] == VitConfig(width=192, depth=12, heads=12, patch_size=16, image_size=224)
    assert SIZES["vit_small"] == VitConfig(width=384, depth=12, heads=12, patch_size=16, image_size=224)


def test_stages_of_the_hierarchical_encoder() -> None:
    size = SIZES["hiera_tiny"]
    assert (size.width, size.depth, size.heads, size.patch_size, size.grid) == (368, 12, 8, 16, (14, 14))
    assert [size.width_at(tap) for tap in range(13)] == [46] * 2 + [92] * 2 + [184] * 7 + [368] * 2
    assert [size.split_at(tap) for tap in range(13)] == [4] * 2 + [2] * 2 + [1] * 9
    # Stages 1 and 2 attend within mask units, and so does the block that pools into stage 3; stage 4 does not pool.
    assert [block for block in range(14) if size.distils(block)] == list(range(5, 13))
    classifier = size.as_classifier()
    assert (classifier.patch_size, classifier.grid, classifier.unit, size.unit) == (32, (7, 7), 1, 2)
    assert [block for block in range(14) if classifier.distils(block)] == [*range(5, 11), 12]


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"image_size": 240}, "mask unit"),
        ({"embed_dim": 45, "first_heads": 2}, "first_heads"),
        ({"stages": (1, 0, 2, 1)}, "stages"),
        ({"stages": (1, 2, 1)}, "stages"),
        ({"patch_kernel": 4}, "patch_kernel"),
        ({"q_pool": 4}, "q_pool"),
    ],
)
def test_impossible_hierarchies_are_refused(change: dict[str, int], word: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=word):
        HieraConfig.model_validate(change)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_grid_counts_the_patches(name: str) -> None:
    size = SIZES[name]
    assert size.grid == (size.image_size // size.patch_size,) * 2
    assert size.tokens == size.grid[0] * size.grid[1]
    assert 16 <= size.tokens <= 256


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"image_size": 100}, "patch_size"),
        ({"width": 190}, "heads"),
        ({"depth": 0}, "depth"),
        ({"width": 18, "heads": 3}, "multiple of 4"),
        ({"heads": 0}, "heads"),
        ({"patch_size": 0}, "patch_size"),
        ({"mlp_ratio": 0.0}, "mlp_ratio"),
    ],
)
def test_impossible_sizes_are_refused(change: dict[str, int], word: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=word):
        VitConfig.model_validate({"width": 192, **change})
