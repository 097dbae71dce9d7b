"""A batch of pairs: what the loop takes of it, and that nothing is lost on the way to a device."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgemim.data.tracking.pairs import PairBatch, PairCrops, collect_pairs  # noqa: E402


def batch(count: int = 3) -> PairBatch:
    generator = np.random.default_rng(0)

    def crops() -> PairCrops:
        pixels = (generator.integers(0, 256, (3, side, side), np.uint8) for side in (8, 16))
        boxes = (generator.random(4).astype(np.float32) for _ in range(2))
        return PairCrops(*pixels, *boxes)

    return collect_pairs([crops() for _ in range(count)], list(range(count)), [7, 8, 9][:count], [("a.jpg", "empty")])


def test_stacking_keeps_types_and_order() -> None:
    pairs = batch()
    assert pairs.template.shape == (3, 3, 8, 8) and pairs.search.shape == (3, 3, 16, 16)
    assert pairs.template.dtype == pairs.search.dtype == torch.uint8
    assert pairs.template_box.shape == (3, 4) and pairs.search_box.dtype == torch.float32
    assert pairs.keys.tolist() == [7, 8, 9] and pairs.indices.tolist() == [0, 1, 2] and len(pairs) == 3


def test_the_loop_is_handed_all_of_it() -> None:
    pairs = batch()
    assert pairs.images is pairs.search
    assert pairs.labels.template is pairs.template and pairs.labels.search_box is pairs.search_box


def test_moved_or_cut_it_stays_whole() -> None:
    pairs = batch()
    moved, part = pairs.to("cpu"), pairs.part(2)
    assert moved.skipped == part.skipped == [("a.jpg", "empty")]
    assert torch.equal(moved.search_box, pairs.search_box) and torch.equal(part.search, pairs.search[:2])
    assert len(part) == 2 and part.keys.tolist() == [7, 8]
