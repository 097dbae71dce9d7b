"""Candidate elimination: which tokens rank, which stay, and that the rest comes back as zeros."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from edgemim.models.elimination import (  # noqa: E402
    choose,
    keep_rate,
    keep_tokens,
    restore_tokens,
    template_attention,
    template_mask,
)


def test_the_share_that_training_keeps() -> None:
    rates = [keep_rate(epoch, 20, 100, 0.7) for epoch in range(301)]
    assert rates[:21] == [1.0] * 21 and rates[100:] == [0.7] * 201
    assert rates[60] == pytest.approx(0.85)  # half way down
    assert all(a >= b for a, b in pairwise(rates))
    assert keep_rate(0.0, 0.0, 0.0, 0.5) == 0.5  # no warm-up at all


@pytest.mark.parametrize(("grid", "cell"), [(8, 3), (12, 5), (7, 3), (14, 6), (6, 2), (1, 0)])
def test_the_central_token(grid: int, cell: int) -> None:
    mask = template_mask("point", grid, 2)
    assert mask.nonzero().tolist() == [[0, cell * grid + cell], [1, cell * grid + cell]]


def test_the_central_rectangle_and_all() -> None:
    assert template_mask("rectangle", 8, 1).nonzero()[:, 1].tolist() == [27, 28, 35, 36]
    assert template_mask("rectangle", 7, 1).nonzero()[:, 1].tolist() == [24]
    assert template_mask("all", 5, 3).all()


def test_the_box_marks_the_tokens_that_it_touches() -> None:
    boxes = torch.tensor([[0.25, 0.5, 0.5, 0.25]])  # of 8 x 8 tokens: columns 2 to 5, rows 4 and 5
    mask = template_mask("box", 8, 1, patch_size=16, boxes=boxes).reshape(8, 8)
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[4:6, 2:6] = True
    assert torch.equal(mask, expected)
    with pytest.raises(ValueError, match="must be given"):
        template_mask("box", 8, 1)


def test_attention_is_that_of_all_tokens_averaged_over_heads() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(2, 3, 10, 4, generator=generator) for _ in range(2))
    found = template_attention(q[:, :, :4], k, 0.5)
    for b in range(2):
        for row in range(4):
            weights = []
            for head in range(3):
                logits = [0.5 * float(q[b, head, row] @ k[b, head, column]) for column in range(10)]
                total = sum(math.exp(value) for value in logits)
                weights.append([math.exp(value) / total for value in logits])
            mean = [sum(column) / 3 for column in zip(*weights, strict=True)]
            assert found[b, row].tolist() == pytest.approx(mean[4:], abs=1e-6)


def test_the_best_stay_in_falling_order_and_places_are_kept() -> None:
    attention = torch.tensor([[[0.1, 0.5, 0.2, 0.4, 0.3]]])
    places = torch.tensor([[10, 11, 12, 13, 14]])
    chosen, elimination = choose(attention, torch.ones(1, 1, dtype=torch.bool), places, 0.5)
    assert chosen.tolist() == [[1, 3, 4]]  # ceil(0.5 * 5)
    assert elimination.kept.tolist() == [[11, 13, 14]] and elimination.removed.tolist() == [[12, 10]]


def test_only_the_ranking_tokens_count_and_none_means_the_central_one() -> None:
    attention = torch.tensor([[[0.9, 0.1], [0.1, 0.9], [0.4, 0.6], [0.5, 0.5]]]).expand(2, -1, -1)
    mask = torch.tensor([[False, True, True, False], [False, False, False, False]])
    chosen, _ = choose(attention, mask, torch.arange(2).expand(2, -1), 0.5)
    assert chosen.tolist() == [[1], [0]]  # of a 2 x 2 grid the first is the central one


def test_dropped_tokens_come_back_as_zeros_in_their_places() -> None:
    x = torch.arange(1.0, 13.0).reshape(1, 6, 2)
    kept = keep_tokens(x, 2, torch.tensor([[3, 0]]))
    assert kept[0, :, 0].tolist() == [1, 3, 11, 5]
    restored = restore_tokens(kept[:, 2:], torch.tensor([[3, 0]]), 4)
    assert restored[0, :, 0].tolist() == [5, 0, 0, 11]
