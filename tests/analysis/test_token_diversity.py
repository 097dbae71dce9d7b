"""Token diversity against the definition written out, and against cases with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from edgemim.analysis import token_diversity as module
from edgemim.analysis.token_diversity import (
    effective_rank,
    measure_diversity,
    plot_diversity,
    ranking,
    token_diversity,
)
from edgemim.errors import UserError


def features(seed: int = 0, shape: tuple[int, int, int] = (3, 16, 10)) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).gamma(2.0, size=shape)).float()


def by_pairs(tokens: np.ndarray) -> float:
    """1 - mean cosine over all pairs of different tokens, one pair at a time."""
    cosines = [
        float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))
        for i, a in enumerate(tokens)
        for j, b in enumerate(tokens)
        if i != j
    ]
    return 1 - float(np.mean(cosines))


def by_svd(tokens: np.ndarray) -> float:
    """exp of the entropy of the singular values' shares."""
    singular = np.linalg.svd(tokens / np.linalg.norm(tokens, axis=1, keepdims=True), compute_uv=False)
    share = singular / singular.sum()
    return float(np.exp(-sum(p * np.log(p) for p in share if p > 0)))


def test_diversity_is_the_mean_over_pairs() -> None:
    tokens = features()
    expected = [by_pairs(image.astype(np.float64)) for image in tokens.numpy()]
    np.testing.assert_allclose(token_diversity(tokens).numpy(), expected, rtol=1e-6)


def test_known_answers() -> None:
    n = 6
    parallel = torch.ones(1, n, 4) * torch.arange(1, n + 1)[None, :, None]
    assert float(token_diversity(parallel)) == pytest.approx(0, abs=1e-9)
    assert float(effective_rank(parallel)) == pytest.approx(1, abs=1e-6)
    orthogonal = torch.eye(n)[None] * 3
    assert float(token_diversity(orthogonal)) == pytest.approx(1, abs=1e-9)
    assert float(effective_rank(orthogonal)) == pytest.approx(n, abs=1e-6)
    # The vertices of a regular simplex: the largest diversity there is.
    simplex = torch.eye(n)[None] - 1 / n
    assert float(token_diversity(simplex)) == pytest.approx(n / (n - 1), abs=1e-6)
    with_zero = torch.cat([torch.eye(n)[:-1], torch.zeros(1, n)])[None]
    assert float(token_diversity(with_zero)) == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("shape", [(2, 16, 10), (2, 10, 16)])
def test_effective_rank_is_that_of_the_singular_values(shape: tuple[int, int, int]) -> None:
    tokens = features(1, shape)
    expected = [by_svd(image.astype(np.float64)) for image in tokens.numpy()]
    np.testing.assert_allclose(effective_rank(tokens).numpy(), expected, rtol=1e-5)


@pytest.mark.parametrize("budget", [2**30, 1])
def test_the_mean_is_that_of_all_images_whatever_the_batches(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the features do not fit into memory and are made twice."""
    monkeypatch.setattr(module, "_HELD_BYTES", budget)
    tokens, calls = features(2, (7, 9, 12)), []

    def batches() -> list[torch.Tensor]:
        calls.append(1)
        return list(tokens.split(3))

    found = measure_diversity(batches)
    assert len(calls) == (1 if budget > 1 else 2)
    everything = tokens.numpy().astype(np.float64)
    centred = everything - everything.reshape(-1, 12).mean(0)
    for kind, images in (("raw", everything), ("centred", centred)):
        each = [by_pairs(image) for image in images]
        spread = found.diversity[kind]
        np.testing.assert_allclose(spread.values, each, rtol=1e-4)
        assert spread.mean == pytest.approx(np.mean(each), rel=1e-5)
        assert spread.sd == pytest.approx(np.std(each, ddof=1), rel=1e-3)
        np.testing.assert_allclose(found.effective_rank[kind].values, [by_svd(image) for image in images], rtol=1e-4)
    assert (found.tokens, found.channels) == (9, 12)
    assert found.diversity["centred"].mean > found.diversity["raw"].mean + 0.5  # a shared component hid it


def test_centring_can_turn_the_ranking() -> None:
    """What is alike because of one shared component may be the more diverse without it."""
    generator = np.random.default_rng(0)
    shared = torch.from_numpy(generator.normal(size=(8, 20, 16))).float() + 10
    few = torch.from_numpy(generator.normal(size=(8, 1, 16)) + 0.5 * generator.normal(size=(8, 20, 16))).float()
    found = {"shared": measure_diversity(lambda: [shared]), "few": measure_diversity(lambda: [few])}
    assert ranking(found, "raw") == ["few", "shared"]
    assert ranking(found, "centred") == ["shared", "few"]
    content = found["few"].as_dict(values=True)
    assert len(content["diversity"]["raw"]["values"]) == 8
    assert "values" not in found["few"].as_dict()["diversity"]["raw"]
    left, right = plot_diversity(found).axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["shared", "few"]
    assert len(left.patches) == len(right.patches) == 4
    assert left.patches[0].get_width() == pytest.approx(found["shared"].diversity["raw"].mean)


def test_features_that_cannot_be_judged_are_refused() -> None:
    bad = features()
    bad[0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite"):
        measure_diversity(lambda: [bad])
    with pytest.raises(UserError, match="single token"):
        measure_diversity(lambda: [features(0, (2, 1, 4))])
