"""A step for every tensor, there and back."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from edgemim.errors import UserError  # noqa: E402
from edgemim.models.convert.plan import TRANSPOSED, Drop, Move, make_plan, swap_halves  # noqa: E402
from edgemim.models.position import sincos_positions  # noqa: E402

WEIGHTS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.ones(2), "spare": torch.zeros(1)}
STEPS = {"a.weight": Move("encoder.vit.x.weight", TRANSPOSED), "b": Move("decoders.y"), "spare": Drop("not needed")}


def test_tensors_arrive_under_our_names_and_gradients_return_under_theirs() -> None:
    plan = make_plan(WEIGHTS, STEPS.get, "some")
    state = plan.state(WEIGHTS)
    assert set(state) == {"encoder.vit.x.weight", "decoders.y"}
    assert torch.equal(state["encoder.vit.x.weight"], WEIGHTS["a.weight"].T)
    assert set(plan.state(WEIGHTS, "encoder.vit.")) == {"x.weight"}
    x = torch.nn.Parameter(state["encoder.vit.x.weight"].clone())
    y = torch.nn.Parameter(state["decoders.y"].clone())
    (x * torch.arange(6.0).view(3, 2)).sum().backward()
    gradients = plan.gradients([("encoder.vit.x.weight", x), ("decoders.y", y)])
    assert set(gradients) == {"a.weight"}  # the other has none
    assert torch.equal(gradients["a.weight"], torch.arange(6.0).view(3, 2).T)


def test_unknown_tensors_are_refused_by_name() -> None:
    extra = {f"other{i}": torch.zeros(1) for i in range(6)}
    with pytest.raises(
        UserError, match="holds other0, other1, other2, other3 and 2 more, which no part of a some checkpoint is named"
    ):
        make_plan({**WEIGHTS, **extra}, STEPS.get, "some")


def test_swapped_halves_are_the_table_of_the_other_axis_order() -> None:
    """The row-first table written out slowly, as MoCo-v3 and mmpretrain have it."""
    width, rows, columns = 8, 2, 3
    table = swap_halves(sincos_positions(width, (rows, columns)))[0]
    for row in range(rows):
        for column in range(columns):
            expected = []
            for place in (row, column):
                angles = [place / 10000 ** (2 * i / (width / 2)) for i in range(width // 4)]
                expected += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
            assert table[row * columns + column].tolist() == pytest.approx(expected, abs=1e-6)
