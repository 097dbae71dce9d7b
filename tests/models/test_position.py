"""Sine-cosine tables against the formula, written out number by number."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_training import NANO  # noqa: F401 (one thread)

from edgemim.models.position import sincos_positions


def slow_table(width: int, rows: int, columns: int) -> torch.Tensor:
    """The paper's table by hand: for each patch, sin then cos of its column, then of its row."""
    table = torch.zeros(rows * columns, width)
    quarter = width // 4
    for row in range(rows):
        for column in range(columns):
            for i in range(quarter):
                period = 10000 ** (i / quarter)
                entries = (
                    math.sin(column / period),
                    math.cos(column / period),
                    math.sin(row / period),
                    math.cos(row / period),
                )
                for part, value in enumerate(entries):
                    table[row * columns + column, part * quarter + i] = value
    return table


@pytest.mark.parametrize(("width", "rows", "columns"), [(4, 2, 2), (24, 3, 5), (192, 14, 14), (100, 1, 7)])
def test_equals_the_formula(width: int, rows: int, columns: int) -> None:
    table = sincos_positions(width, (rows, columns))
    assert table.shape == (1, rows * columns, width)
    assert table.dtype == torch.float32
    torch.testing.assert_close(table[0], slow_table(width, rows, columns), rtol=0, atol=1e-6)


def test_class_tokens_have_no_position() -> None:
    table = sincos_positions(8, (2, 2), prefix=3)
    assert table.shape == (1, 7, 8)
    assert not table[0, :3].any()
    torch.testing.assert_close(table[:, 3:], sincos_positions(8, (2, 2)))


def test_width_must_divide_by_four() -> None:
    with pytest.raises(ValueError, match="multiple of 4"):
        sincos_positions(10, (2, 2))
