"""k-NN accuracy against an obvious version in plain Python."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from tiny_training import TinyBatch, keys_of, pixels

from edgemim.analysis.knn import extract_features, knn_accuracy


def slow_knn(
    train: np.ndarray, labels: np.ndarray, test: np.ndarray, wanted: np.ndarray, k: int, t: float, center: bool
) -> float:
    """Each query asks its k nearest by cosine; votes weigh exp(cosine / t)."""
    if center:
        mean = train.mean(0)
        train, test = train - mean, test - mean
    right = 0
    for query, label in zip(test, wanted, strict=True):
        cosines = [float(query @ x / (np.linalg.norm(query) * np.linalg.norm(x))) for x in train]
        votes: dict[int, float] = {}
        for i in sorted(range(len(train)), key=lambda i: -cosines[i])[:k]:
            votes[int(labels[i])] = votes.get(int(labels[i]), 0.0) + math.exp(cosines[i] / t)
        right += max(votes, key=lambda name: votes[name]) == label
    return 100 * right / len(test)


def problem(seed: int, offset: float = 0.0) -> tuple[torch.Tensor, ...]:
    """Five overlapping clusters in 6 dimensions, perhaps far from the origin."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(5, 6, generator=generator)
    labels = torch.randint(0, 5, (120,), generator=generator)
    features = centres[labels] + 1.2 * torch.randn(120, 6, generator=generator) + offset
    return features[:80], labels[:80], features[80:], labels[80:]


@pytest.mark.parametrize("center", [True, False])
@pytest.mark.parametrize(("k", "t"), [(1, 0.07), (5, 0.07), (20, 0.5), (500, 1.0)])
def test_equals_the_slow_version(k: int, t: float, center: bool) -> None:
    for seed in range(3):
        parts = problem(seed, offset=2.0)
        ours = knn_accuracy(*parts, k=k, temperature=t, center=center)
        assert ours == pytest.approx(slow_knn(*(part.numpy() for part in parts), k, t, center))
        assert 20 < ours < 100  # neither trivial nor hopeless


def test_scale_does_not_matter() -> None:
    train, labels, test, wanted = problem(0)
    assert knn_accuracy(train, labels, test, wanted) == knn_accuracy(1e3 * train, labels, 1e3 * test, wanted)


def test_one_common_component_hides_nothing() -> None:
    """Features of a masked autoencoder share a large mean: centring sees past it."""
    near, far = problem(1), problem(1, offset=300.0)
    assert knn_accuracy(*far) == pytest.approx(knn_accuracy(*near), abs=5)
    assert knn_accuracy(*far, center=True) >= knn_accuracy(*far, center=False)


def test_many_queries_are_counted_across_pieces() -> None:
    train, labels, test, wanted = problem(2)
    many = knn_accuracy(train, labels, test.repeat(60, 1), wanted.repeat(60))
    assert many == pytest.approx(knn_accuracy(train, labels, test, wanted))


def test_a_class_that_only_queries_have_is_never_right() -> None:
    train, labels, test, wanted = problem(0)
    assert knn_accuracy(train, labels, test, torch.full_like(wanted, 9)) == 0.0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_features_that_are_not_finite_are_refused(value: float) -> None:
    train, labels, test, wanted = problem(0)
    test[3, 2] = value
    with pytest.raises(ValueError, match="not finite"):
        knn_accuracy(train, labels, test, wanted)


def test_features_come_in_order_from_all_batches() -> None:
    batches = [TinyBatch(pixels(n, seed=n), torch.arange(n), keys_of(n)) for n in (4, 3)]
    features, labels = extract_features(
        lambda images: images.float().mean((2, 3)).bfloat16(),
        batches,
        torch.device("cpu"),  # pyright: ignore
    )
    assert features.shape == (7, 3)
    assert features.dtype == torch.float32
    assert labels.tolist() == [0, 1, 2, 3, 0, 1, 2]
    torch.testing.assert_close(features[4:], pixels(3, seed=3).float().mean((2, 3)), rtol=1e-2, atol=0)
