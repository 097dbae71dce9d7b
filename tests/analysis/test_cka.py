"""CKA against the definition of unbiased HSIC over all quadruples, and what it must not see."""

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from edgemim.analysis.cka import MinibatchCka, gram_matrix, plot_cka, unbiased_hsic  # noqa: E402
from edgemim.errors import UserError  # noqa: E402


def features(*shape: int, seed: int = 0) -> Tensor:
    """Random features."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def hsic_by_definition(k: Tensor, other: Tensor) -> float:
    """Mean over all ordered quadruples of different images of K_ij (L_ij + L_qr - 2 L_iq) (Song et al. 2012)."""
    terms = [
        float(k[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q])) for i, j, q, r in permutations(range(len(k)), 4)
    ]
    return float(np.mean(terms))


def test_hsic_is_its_definition() -> None:
    first, second = features(6, 3, 4), features(6, 5, 2, seed=1) + 0.7
    rows = [x.flatten(1).double() for x in (first, second)]
    k, other = (x @ x.T for x in rows)
    found = unbiased_hsic(gram_matrix(first), gram_matrix(second))
    assert float(found) == pytest.approx(hsic_by_definition(k, other), rel=1e-9)


def test_a_pair_of_layers_is_judged_by_the_sums_over_batches() -> None:
    cka, batches = MinibatchCka(), [(features(n, 4, 6, seed=n), features(n, 9, 3, seed=n + 50)) for n in (7, 7, 5)]
    sums = np.zeros(3)
    for first, second in batches:
        cka.update([first, first * 2], [second])
        k, other = gram_matrix(first), gram_matrix(second)
        sums += [hsic_by_definition(a, b) for a, b in ((k, k), (k, other), (other, other))]
    assert cka.compute().shape == (2, 1)
    expected = sums[1] / np.sqrt(sums[0] * sums[2])
    assert cka.compute().squeeze(1).tolist() == pytest.approx([expected, expected], rel=1e-9)


def test_rotation_scale_and_shift_change_nothing_and_unrelated_features_are_near_zero() -> None:
    cka = MinibatchCka()
    rotation = torch.linalg.qr(features(12, 12, seed=9)).Q
    for seed in range(4):
        x = features(24, 1, 12, seed=seed)
        cka.update([x], [x, 3 * (x @ rotation) + 5, features(24, 1, 12, seed=seed + 100)])
    same, turned, unrelated = cka.compute()[0].tolist()
    assert same == pytest.approx(1)
    assert turned == pytest.approx(1, abs=1e-5)
    assert abs(unrelated) < 0.15


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="at least 4 images"):
        MinibatchCka().update([features(3, 2, 2)], [features(3, 2, 2)])
    bad = features(5, 2, 2)
    bad[0, 0, 0] = float("nan")
    with pytest.raises(UserError, match=r"second subject are not finite at its layer 1") as caught:
        MinibatchCka().update([features(5, 2, 2)], [features(5, 2, 2), bad])
    assert "\n" not in str(caught.value)


def test_the_picture_has_the_first_network_upwards_and_a_number_in_each_cell() -> None:
    values = np.asarray([[0.9, 0.1, 0.3], [0.2, 0.8, -0.05]])
    figure = plot_cka(values, ("one", "two"), (["a", "b"], ["c", "d", "e"]))
    axes = figure.axes[0]
    assert axes.get_ylabel() == "one" and axes.get_xlabel() == "two"
    assert axes.get_ylim()[0] < axes.get_ylim()[1]
    written = {text.get_position(): text.get_text() for text in axes.texts}
    assert written == {(col, row): f"{values[row, col]:.2f}" for row in range(2) for col in range(3)}
