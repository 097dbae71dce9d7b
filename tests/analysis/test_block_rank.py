"""Rank and diversity by layer: those of the figures' own module, centred by the mean token of the sample."""

from __future__ import annotations

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from edgemim.analysis.block_rank import measure_layers, plot_layers  # noqa: E402
from edgemim.analysis.token_diversity import measure_diversity  # noqa: E402
from edgemim.errors import UserError  # noqa: E402


def batches(seed: int = 0) -> list[list[torch.Tensor]]:
    """Two batches of tokens at two layers of different shapes, with a common component."""
    generator = torch.Generator().manual_seed(seed)
    return [[2 + torch.randn(count, *shape, generator=generator) for shape in ((9, 6), (4, 12))] for count in (5, 3)]


def test_every_layer_is_measured_as_a_teacher_is() -> None:
    found = measure_layers(batches)
    for number, layer in enumerate(found):
        expected = measure_diversity(lambda number=number: [batch[number] for batch in batches()])
        assert (layer.tokens, layer.channels) == (expected.tokens, expected.channels)
        for kind in ("raw", "centred"):
            assert layer.effective_rank[kind].values == pytest.approx(expected.effective_rank[kind].values, rel=1e-5)
            assert layer.diversity[kind].values == pytest.approx(expected.diversity[kind].values, rel=1e-5)


def test_rank_is_that_of_the_singular_values() -> None:
    tokens = batches()[0][0]
    unit = tokens[0].double() / tokens[0].double().norm(dim=-1, keepdim=True)
    singular = np.linalg.svd(unit.numpy(), compute_uv=False)
    share = singular / singular.sum()
    found = measure_layers(batches)[0].effective_rank["raw"].values[0]
    assert found == pytest.approx(np.exp(-(share * np.log(share)).sum()), rel=1e-6)


def test_features_that_are_not_finite_are_one_sentence() -> None:
    bad = batches()
    bad[1][1][0, 0, 0] = float("nan")
    with pytest.raises(UserError, match="not finite") as caught:
        measure_layers(lambda: bad)
    assert "\n" not in str(caught.value)


def test_the_picture_has_a_line_for_each_subject_and_kind() -> None:
    found = measure_layers(batches)
    figure = plot_layers({"one": found, "two": found})
    assert [line.get_label() for line in figure.axes[0].lines] == [
        "one, raw",
        "one, centred",
        "two, raw",
        "two, centred",
    ]
    assert np.asarray(figure.axes[0].lines[1].get_ydata()).tolist() == pytest.approx(
        [layer.effective_rank["centred"].mean for layer in found]
    )
