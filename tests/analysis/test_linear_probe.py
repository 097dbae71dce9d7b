"""The linear probe against scikit-learn's logistic regression, its choice of a rate, and mistakes."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from edgemim.analysis.linear_probe import ProbeSettings, _optimizer, linear_probe, sorted_rates, standardise  # noqa: E402
from edgemim.errors import UserError  # noqa: E402

torch.set_num_threads(1)
QUICK = ProbeSettings(epochs=20, rates=(1e-4, 1e-2), seeds=(0, 1))


def clouds(count: int, seed: int, spread: float = 1.0) -> tuple[Tensor, Tensor]:
    """Four overlapping classes in 12 dimensions of very different scales."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(4, 12, generator=torch.Generator().manual_seed(99))
    labels = torch.arange(count) % 4
    features = centres[labels] + spread * torch.randn(count, 12, generator=generator)
    return features * torch.logspace(-3, 3, 12) + 7, labels


def test_it_is_as_good_as_logistic_regression() -> None:
    linear_model = pytest.importorskip("sklearn.linear_model")
    (train, labels), (test, wanted) = clouds(400, 0, 1.6), clouds(800, 1, 1.6)
    found = linear_probe(train, labels, test, wanted)
    known, (asked,) = standardise(train, test)
    reference = linear_model.LogisticRegression(C=10.0, max_iter=500).fit(known.numpy(), labels.numpy())
    expected = 100 * reference.score(asked.numpy(), wanted.numpy())
    assert 60 < expected < 97
    assert abs(found.mean - expected) < 2.0
    assert found.deviation < 2.0 and len(found.top1) == 3
    assert len(found.sweep) == 8 and set(found.rates) <= set(found.sweep)


def test_the_rate_is_chosen_on_the_split_of_train_alone() -> None:
    (train, labels), (test, wanted) = clouds(200, 0), clouds(100, 1)
    found = linear_probe(train, labels, test, wanted, QUICK)
    assert found.rates == (1e-2, 1e-2) and found.at_the_edge
    assert found.sweep[1e-2] > found.sweep[1e-4] + 5
    shuffled = wanted[torch.randperm(len(wanted), generator=torch.Generator().manual_seed(0))]
    other = linear_probe(train, labels, test, shuffled, QUICK)
    assert (other.rates, other.sweep) == (found.rates, found.sweep)
    assert other.mean < 50 < found.mean


def test_the_same_seeds_give_the_same_and_lars_learns_too() -> None:
    (train, labels), (test, wanted) = clouds(200, 0), clouds(100, 1)
    assert linear_probe(train, labels, test, wanted, QUICK) == linear_probe(train, labels, test, wanted, QUICK)
    lars = ProbeSettings(optimizer="lars", rates=(3.0, 10.0), epochs=20, seeds=(0,))
    assert linear_probe(train, labels, test, wanted, lars).mean > 80
    assert sorted_rates((), "lars")[-1] == 100 and sorted_rates((3e-3, 1e-3, 3e-3), "adamw") == (1e-3, 3e-3)


def test_lars_measures_the_matrix_by_its_norm_and_not_the_vector() -> None:
    """A step of MAE's probe by hand, without decay: rate * 0.001 * |w| / |g| along the gradient; the vector's is plain."""
    (features, labels), classifier = clouds(40, 0), torch.nn.Linear(12, 4)
    optimizer = _optimizer(classifier, 3.0, ProbeSettings(optimizer="lars"))
    before = {name: p.detach().clone() for name, p in classifier.named_parameters()}
    torch.nn.functional.cross_entropy(classifier(standardise(features)[0]), labels).backward()
    optimizer.step()
    weight, bias = classifier.weight, classifier.bias
    assert weight.grad is not None and bias.grad is not None
    share = 3.0 * 0.001 * before["weight"].norm() / weight.grad.norm()
    torch.testing.assert_close(weight.detach(), before["weight"] - share * weight.grad)
    torch.testing.assert_close(bias.detach(), before["bias"] - 3.0 * bias.grad)


def test_standardised_channels_and_dead_ones() -> None:
    train, _ = clouds(50, 0)
    train[:, 3] = 2.5
    known, (other,) = standardise(train, train + 1)
    assert np.abs(known.mean(0).numpy()).max() < 1e-3
    assert known.std(0, correction=0)[[0, 5, 11]].tolist() == pytest.approx([1, 1, 1], abs=1e-3)
    assert known[:, 3].abs().max() == 0 == other[:, 3].abs().max()


def test_mistakes_are_one_sentence() -> None:
    (train, labels), (test, wanted) = clouds(40, 0), clouds(40, 1)
    bad = train.clone()
    bad[3, 2] = float("nan")
    for given, words in (
        ((bad, labels, test, wanted), "features are not finite"),
        ((train, labels, bad, wanted), "features are not finite"),
        ((train, labels * 0, test, wanted * 0), "all training images are of one class"),
        ((train, labels % 2, test, wanted), "class number 2 has images to classify but none to learn from"),
        ((train[:4], labels[:4], test, wanted), "too few to choose a learning rate"),
    ):
        with pytest.raises(UserError, match=words) as caught:
            linear_probe(*given, settings=QUICK)
        assert "\n" not in str(caught.value)
