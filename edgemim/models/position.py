"""Fixed two-dimensional sine-cosine position tables."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def sincos_positions(width: int, grid: tuple[int, int], *, prefix: int = 0) -> Float[Tensor, "1 tokens width"]:
    """The table of MAE (arXiv 2111.06377): [1, prefix + rows * columns, width], row-major, zeros for prefix tokens.

    The first half of the channels encodes the column, the second half the row; in each half, sines come before
    cosines. (MoCo-v3 and mmpretrain encode the row first: their tables are equal after swapping the halves.)

    Raises:
        ValueError: if `width` is not a multiple of 4.
    """
    if width % 4:
        raise ValueError(f"sine-cosine positions need a width that is a multiple of 4, not {width}")
    rows, columns = grid
    row, column = torch.meshgrid(
        torch.arange(rows, dtype=torch.float64), torch.arange(columns, dtype=torch.float64), indexing="ij"
    )
    table = torch.cat([_sincos(column.flatten(), width // 2), _sincos(row.flatten(), width // 2)], dim=1)
    return torch.cat([torch.zeros(prefix, width, dtype=torch.float64), table]).float()[None]


def _sincos(position: Float[Tensor, " n"], width: int) -> Float[Tensor, "n width"]:
    frequency = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width / 2))
    angle = position[:, None] * frequency[None]
    return torch.cat([angle.sin(), angle.cos()], dim=1)
