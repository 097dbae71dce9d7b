"""The centre head of a tracker: where the target's centre is, where in its cell, and how large the target is.

OSTrack, arXiv 2203.11991, section 3.3, which takes it from CenterNet, arXiv 1904.07850.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

_MARGIN = 1e-4


class TrackMaps(NamedTuple):
    """What a tracker says of a search region, cell by cell of its grid.

    Attributes:
        score: [b, 1, g, g] in [1e-4, 1 - 1e-4]: whether the target's centre is in the cell.
        offset: [b, 2, g, g] x and y of the centre from the cell's first corner, in cells; not bounded.
        size: [b, 2, g, g] width and height over the region's side, in [1e-4, 1 - 1e-4].
    """

    score: Float[Tensor, "b 1 g g"]
    offset: Float[Tensor, "b 2 g g"]
    size: Float[Tensor, "b 2 g g"]


class CenterHead(nn.Module):
    """Three stacks of four 3x3 convolutions (C, C/2, C/4, C/8 channels, batch norm, ReLU) and a 1x1 one."""

    def __init__(self, width: int, channels: int) -> None:
        super().__init__()
        self.score = _stack(width, channels, 1)
        self.offset = _stack(width, channels, 2)
        self.size = _stack(width, channels, 2)
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, features: Float[Tensor, "b width g g"]) -> TrackMaps:
        """The maps of a search region's features, in float32 or the features' own precision."""
        return TrackMaps(_bounded(self.score(features)), self.offset(features), _bounded(self.size(features)))


def _stack(width: int, channels: int, out: int) -> nn.Sequential:
    widths = [width, channels, channels // 2, channels // 4, channels // 8]
    stages = [
        nn.Sequential(nn.Conv2d(before, after, 3, padding=1), nn.BatchNorm2d(after), nn.ReLU(inplace=True))
        for before, after in pairwise(widths)
    ]
    return nn.Sequential(*stages, nn.Conv2d(widths[-1], out, 1))


def _bounded(logits: Tensor) -> Tensor:
    return logits.sigmoid().clamp(_MARGIN, 1 - _MARGIN)


def decode_boxes(maps: TrackMaps, window: Float[Tensor, "... g g"] | None = None) -> Float[Tensor, "b 4"]:
    """The box at the largest score: centre x, centre y, width, height over the region's side. Carries gradients.

    Args:
        maps: a tracker's.
        window: weights of the cells, multiplied with the score before the largest is looked for.
    """
    score = maps.score if window is None else maps.score * window
    side = score.shape[-1]
    cell = score.flatten(1).argmax(1)
    place = cell[:, None, None].expand(-1, 2, 1)
    offset, size = (chosen.flatten(2).gather(2, place).squeeze(2) for chosen in (maps.offset, maps.size))
    corner = torch.stack([cell % side, cell.div(side, rounding_mode="floor")], dim=1)
    return torch.cat([(corner + offset) / side, size], dim=1)
