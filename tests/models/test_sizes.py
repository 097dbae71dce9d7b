"""Named sizes and what a size may not be."""

from __future__ import annotations

import pydantic
import pytest

from edgemim.models.sizes import SIZES, VitConfig


def test_sizes_of_the_lightweight_study() -> None:
    assert SIZES["vit_tiny"] == VitConfig(width=192, depth=12, heads=12, patch_size=16, image_size=224)
    assert SIZES["vit_small"] == VitConfig(width=384, depth=12, heads=12, patch_size=16, image_size=224)


@pytest.mark.parametrize("name", sorted(SIZES))
def test_grid_counts_the_patches(name: str) -> None:
    size = SIZES[name]
    assert isinstance(size, VitConfig)
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
