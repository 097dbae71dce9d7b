"""Candidate elimination: search tokens that the template does not look at leave the blocks early.

OSTrack, arXiv 2203.11991, section 3.2: the tokens are ranked by the attention that they get from the template's central
token, averaged over the heads; of those that stay the order is that of the rank, which attention does not see.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from edgemim.models.encoder import gather_tokens
from edgemim.models.tracker_sizes import Rows


class Elimination(NamedTuple):
    """Positions in the search grid, row-major, in falling order of attention.

    Attributes:
        kept: [b, k] of the tokens that stay.
        removed: [b, r] of those that leave at this block.
    """

    kept: Int[Tensor, "b k"]
    removed: Int[Tensor, "b r"]


def keep_rate(progress: float, start: float, end: float, keep: float) -> float:
    """The share of search tokens that training keeps: all until `start`, then a half cosine down to `keep` at `end`.

    Args:
        progress: how far training is, in the unit of `start` and `end` (epochs, or shares of the run).
        start: where elimination begins.
        end: where it is complete.
        keep: the share that is kept from there on.
    """
    if progress < start:
        return 1.0
    if progress >= end:
        return keep
    return keep + (1 - keep) * (1 + math.cos(math.pi * (progress - start) / (end - start))) / 2


def template_mask(
    rows: Rows,
    grid: int,
    batch: int,
    *,
    patch_size: int = 1,
    boxes: Float[Tensor, "b 4"] | None = None,
    device: torch.device | str = "cpu",
) -> Bool[Tensor, "b n"]:
    """Which template tokens rank the search tokens.

    Of an even grid no token is central: the one above and left of the centre counts, as published.

    Args:
        rows: the central token; the central one of an odd grid or two by two of an even one; tokens that a box touches,
            as published; or all.
        grid: tokens along the template's side.
        batch: number of templates.
        patch_size: side of a token, pixels; for 'box'.
        boxes: left, top, width, height over the template's side; for 'box'.
        device: where the mask is made.

    Raises:
        ValueError: if 'box' is asked for without boxes.
    """
    if rows == "box":
        if boxes is None:
            raise ValueError("tokens are ranked by those on the template's box: it must be given")
        return _touched(boxes, grid, patch_size).to(device)
    mask = torch.zeros(batch, grid, grid, dtype=torch.bool, device=device)
    first, last = {"point": ((grid - 1) // 2,) * 2, "rectangle": ((grid - 1) // 2, grid // 2), "all": (0, grid)}[rows]
    mask[:, first : last + 1, first : last + 1] = True
    return mask.flatten(1)


def _touched(boxes: Tensor, grid: int, patch_size: int) -> Bool[Tensor, "b n"]:
    """Published: pixels from the box's first to one before its last, halved bilinearly to the grid; what is not zero."""
    side = grid * patch_size
    pixels = torch.zeros(len(boxes), 1, side, side)
    for mask, (left, top, width, height) in zip(pixels, (boxes * side).tolist(), strict=True):
        mask[:, max(0, int(top)) : int(top + height - 1), max(0, int(left)) : int(left + width - 1)] = 1
    cells = F.interpolate(pixels, size=(grid, grid), mode="bilinear", align_corners=False)
    return (cells > 0).flatten(1)


def template_attention(
    queries: Float[Tensor, "b heads n d"], keys: Float[Tensor, "b heads t d"], scale: float
) -> Float[Tensor, "b n s"]:
    """What each of the n template tokens gives to each of the s = t - n search tokens, averaged over the heads."""
    attention = ((queries * scale) @ keys.transpose(-2, -1)).softmax(dim=-1)
    return attention[..., queries.shape[2] :].mean(1)


def choose(
    attention: Float[Tensor, "b n s"], mask: Bool[Tensor, "b n"], places: Int[Tensor, "b s"], keep: float
) -> tuple[Int[Tensor, "b k"], Elimination]:
    """Which search tokens stay: their numbers among the s that are there, and their positions in the grid.

    Args:
        attention: of `template_attention`.
        mask: the template tokens that rank; where there is none in a row, the central one does.
        places: position in the grid of each of the s tokens.
        keep: share of the tokens that stay, rounded up.
    """
    rank = torch.einsum("bn,bns->bs", _weights(mask), attention.float())
    order = rank.argsort(dim=1, descending=True)
    count = math.ceil(keep * rank.shape[1])
    sorted_places = places.gather(1, order)
    return order[:, :count], Elimination(sorted_places[:, :count], sorted_places[:, count:])


def _weights(mask: Bool[Tensor, "b n"]) -> Float[Tensor, "b n"]:
    centre = template_mask("point", math.isqrt(mask.shape[1]), 1, device=mask.device)
    mask = torch.where(mask.any(1, keepdim=True), mask, centre).float()
    return mask / mask.sum(1, keepdim=True)


def keep_tokens(
    x: Float[Tensor, "b t width"], template: int, chosen: Int[Tensor, "b k"]
) -> Float[Tensor, "b kept width"]:
    """The template's tokens and the chosen ones of the search region."""
    return torch.cat([x[:, :template], gather_tokens(x[:, template:], chosen)], dim=1)


def restore_tokens(
    tokens: Float[Tensor, "b k width"], places: Int[Tensor, "b k"], count: int
) -> Float[Tensor, "b count width"]:
    """Tokens at their positions in a grid of `count`; zeros where one was dropped."""
    batch, _, width = tokens.shape
    index = places.unsqueeze(-1).expand(-1, -1, width)
    return tokens.new_zeros(batch, count, width).scatter(1, index, tokens)
