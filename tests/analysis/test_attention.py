"""Attention statistics against slow versions, scikit-learn's mutual information, and maps whose figures are known."""

from __future__ import annotations

import math

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from edgemim.analysis.attention import (  # noqa: E402
    AttentionStatistics,
    attention_distance,
    attention_entropy,
    attention_nmi,
    patch_attention,
    patch_distances,
    plot_attention,
)
from edgemim.errors import UserError  # noqa: E402

GRID = (2, 3)


def logits(batch: int, heads: int = 2, tokens: int = 7, seed: int = 0) -> Tensor:
    """Random logits."""
    return 2 * torch.randn(batch, heads, tokens, tokens, generator=torch.Generator().manual_seed(seed))


def test_distances_are_those_of_the_grid_in_pixels() -> None:
    found = patch_distances(GRID, 16.0)
    for a in range(6):
        for b in range(6):
            assert float(found[a, b]) == pytest.approx(16 * math.hypot(a // 3 - b // 3, a % 3 - b % 3))


def test_the_class_token_leaves_before_the_softmax() -> None:
    given = logits(2)
    found = patch_attention(given, 1)
    inner = given[:, :, 1:, 1:].double().exp()
    assert torch.allclose(found, inner / inner.sum(-1, keepdim=True))
    whole = given.double().softmax(-1).log()  # what is left of logits behind a softmax: less a constant of the row
    assert torch.allclose(patch_attention(whole, 1), found)


def test_maps_whose_figures_are_known() -> None:
    distances = patch_distances(GRID, 16.0)
    uniform, own = torch.full((1, 1, 6, 6), 1 / 6, dtype=torch.float64), torch.eye(6, dtype=torch.float64)[None, None]
    collapsed = torch.zeros(1, 1, 6, 6, dtype=torch.float64)
    collapsed[..., 2] = 1
    assert attention_distance(uniform, distances).item() == pytest.approx(float(distances.mean()))
    assert attention_distance(own, distances).item() == 0
    assert attention_entropy(uniform).item() == pytest.approx(math.log(6), abs=1e-5)
    assert attention_entropy(own).item() == pytest.approx(0, abs=2e-6)
    assert [attention_nmi(x).item() for x in (uniform, own, collapsed)] == pytest.approx([0, 1, 0])


def test_nmi_is_that_of_the_joint_distribution() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    attention = patch_attention(logits(3), 1)
    found = attention_nmi(attention)
    for image in range(3):
        for head in range(2):
            joint = attention[image, head].numpy() / 6
            key = joint.sum(0)
            # It counts in whole numbers inside.
            information = metrics.mutual_info_score(None, None, contingency=1e8 * joint)
            expected = information / math.sqrt(math.log(6) * -(key * np.log(key)).sum())
            assert found[image, head].item() == pytest.approx(expected, rel=1e-6)


def test_means_over_images_and_as_published_over_batches() -> None:
    statistics = AttentionStatistics(patch_distances(GRID, 16.0), prefix=1)
    parts = [logits(4), logits(1, seed=1)]
    each = []
    for part in parts:
        statistics.update(part)
        attention = part[:, :, 1:, 1:].softmax(-1).numpy()
        grid = np.asarray([[r, c] for r in range(2) for c in range(3)]) * 16
        away = np.linalg.norm(grid[:, None] - grid[None], axis=-1)
        each.append((attention * away).sum(-1).mean(-1))
    over_images = np.concatenate(each)
    assert statistics.mean("distance_px").tolist() == pytest.approx(over_images.mean(0), rel=1e-5)
    equal = (each[0].mean(0) + each[1].mean(0)) / 2
    assert statistics.mean("distance_px", equal_batches=True).tolist() == pytest.approx(equal, rel=1e-5)
    assert np.abs(equal - over_images.mean(0)).max() > 0.01
    assert statistics.deviation("distance_px").tolist() == pytest.approx(over_images.std(0, ddof=1), rel=1e-5)
    summary = statistics.as_dict()["distance_px"]
    assert summary["mean"] == pytest.approx(over_images.mean(), rel=1e-5)
    assert len(summary["heads"]) == len(summary["sd_over_images"]) == 2


def test_logits_that_are_not_finite_are_one_sentence() -> None:
    bad = logits(1)
    bad[0, 0, 3, 3] = float("inf")
    with pytest.raises(UserError, match="not finite") as caught:
        AttentionStatistics(patch_distances(GRID, 16.0), prefix=1).update(bad)
    assert "\n" not in str(caught.value)


def test_the_picture_has_a_dot_for_each_head_and_a_line_through_the_means() -> None:
    statistics = AttentionStatistics(patch_distances(GRID, 16.0), prefix=1)
    statistics.update(logits(3))
    block = statistics.as_dict()
    figure = plot_attention({"one": {1: block, 2: block, 3: block}, "two": {2: block}})
    assert len(figure.axes) == 3
    dots, line = figure.axes[0].lines[:2]
    assert len(np.asarray(dots.get_xdata())) == 6
    assert np.asarray(line.get_ydata()).tolist() == pytest.approx([block["distance_px"]["mean"]] * 3)
