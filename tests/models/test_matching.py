"""Similarities of tokens: what they are blind to, and what they are not."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from edgemim.models.matching import directions, similarities  # noqa: E402


def test_the_same_token_is_most_alike() -> None:
    tokens = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(0))
    found = similarities(directions(tokens[:, :16]), directions(tokens))
    assert found.shape == (2, 16, 16)
    assert torch.equal(found.argmax(2), torch.arange(16).expand(2, -1))
    assert torch.allclose(found.diagonal(dim1=1, dim2=2), torch.tensor(3.0))


def test_what_all_tokens_share_and_their_lengths_do_not_count() -> None:
    tokens = torch.randn(1, 9, 8, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(directions(5 * tokens + torch.arange(8.0)), directions(tokens), atol=1e-5)


def test_tokens_that_are_all_alike_give_zeros() -> None:
    assert (similarities(directions(torch.ones(1, 4, 8)), directions(torch.rand(1, 9, 8))) == 0).all()
