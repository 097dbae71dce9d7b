"""What a tracker is trained on: a Gaussian on the target's centre, and the box at the largest score.

OSTrack, arXiv 2203.11991, equation 5: focal + 2 GIoU + 5 L1; heat map and focal loss of CornerNet, arXiv 1808.01244;
GIoU, arXiv 1902.09630.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from edgemim.models.center_head import TrackMaps, decode_boxes

_MIN_OVERLAP = 0.7


class TrackingLosses(NamedTuple):
    """Scalars, not weighted, and the mean overlap of the predicted boxes with the true ones."""

    focal: Tensor
    giou: Tensor
    l1: Tensor
    mean_iou: Tensor


def tracking_losses(maps: TrackMaps, boxes: Float[Tensor, "b 4"]) -> TrackingLosses:
    """The three losses of a batch.

    The box losses act on the box at the largest predicted score alone, wherever the target is. As published the true
    corners are clamped to the region, the predicted ones are not.

    Args:
        maps: what the tracker says of the search regions.
        boxes: true boxes, left, top, width, height over the region's side.
    """
    predicted, true = corners_of_centres(decode_boxes(maps).float()), corners_of_boxes(boxes.float()).clamp(0, 1)
    overlap, generalised = iou_and_giou(predicted, true)
    heat = gaussian_maps(boxes.float(), maps.score.shape[-1])
    return TrackingLosses(
        focal=focal_loss(maps.score.squeeze(1).float(), heat),
        giou=(1 - generalised).mean(),
        l1=F.l1_loss(predicted, true),
        mean_iou=overlap.detach().mean(),
    )


def gaussian_maps(
    boxes: Float[Tensor, "b 4"], grid: int, min_overlap: float = _MIN_OVERLAP
) -> Float[Tensor, "b grid grid"]:
    """CornerNet's heat map of one target a region: 1 in the cell next to its centre, a Gaussian around, 0 far away.

    The centre is rounded to the nearest cell's corner, halves to even; of a target at the far border that may lie outside
    the grid, and then nowhere is a 1.

    Args:
        boxes: left, top, width, height over the region's side.
        grid: cells along a side.
        min_overlap: IoU that a box of this size keeps when it is shifted by the Gaussian's radius.
    """
    cells = boxes * grid
    centre = (cells[:, :2] + cells[:, 2:] / 2).round()
    radius = gaussian_radius(cells[:, 2:], min_overlap).clamp(min=0).floor()[:, None, None]
    places = torch.arange(grid, device=boxes.device, dtype=boxes.dtype)
    dx = (places[None, None, :] - centre[:, 0, None, None]).expand(-1, grid, -1)
    dy = (places[None, :, None] - centre[:, 1, None, None]).expand(-1, -1, grid)
    deviation = (2 * radius + 1) / 6
    heat = torch.exp(-(dx.square() + dy.square()) / (2 * deviation.square()))
    return torch.where((dx.abs() <= radius) & (dy.abs() <= radius), heat, heat.new_zeros(()))


def gaussian_radius(sides: Float[Tensor, "b 2"], min_overlap: float = _MIN_OVERLAP) -> Float[Tensor, " b"]:
    """The radius that CornerNet's published code computes from a box's sides, in cells.

    It divides all three roots by 2 where the quadratic formula divides by 2 a; trackers are trained so, thus it stays.
    """
    total, area = sides.sum(1), sides.prod(1)
    # (a, b, c) of both corners shifted apart, both inwards, both outwards.
    equations = (
        (1.0, total, area * (1 - min_overlap) / (1 + min_overlap)),
        (4.0, 2 * total, area * (1 - min_overlap)),
        (4 * min_overlap, -2 * min_overlap * total, area * (min_overlap - 1)),
    )
    roots = [(b + (b.square() - 4 * a * c).sqrt()) / 2 for a, b, c in equations]
    return torch.stack(roots).amin(0)


def focal_loss(score: Float[Tensor, "b g g"], heat: Float[Tensor, "b g g"]) -> Tensor:
    """CornerNet's focal loss (alpha 2, beta 4) over the number of cells whose target is 1, or over nothing without one."""
    score = score.clamp(min=1e-12)
    centre = heat == 1
    hit = score.log() * (1 - score).square()
    miss = (1 - score).log() * score.square() * (1 - heat).pow(4)
    count = centre.sum().clamp(min=1)
    return -torch.where(centre, hit, miss).sum() / count


def iou_and_giou(a: Float[Tensor, "b 4"], b: Float[Tensor, "b 4"]) -> tuple[Float[Tensor, " b"], Float[Tensor, " b"]]:
    """Overlap and generalised overlap of boxes given by their corners, pair by pair."""
    inner = (torch.minimum(a[:, 2:], b[:, 2:]) - torch.maximum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    union = (a[:, 2:] - a[:, :2]).prod(1) + (b[:, 2:] - b[:, :2]).prod(1) - inner
    hull = (torch.maximum(a[:, 2:], b[:, 2:]) - torch.minimum(a[:, :2], b[:, :2])).clamp(min=0).prod(1)
    overlap = inner / union
    return overlap, overlap - (hull - union) / hull


def corners_of_centres(boxes: Float[Tensor, "b 4"]) -> Float[Tensor, "b 4"]:
    """Centre, width and height to left, top, right and bottom."""
    half = boxes[:, 2:] / 2
    return torch.cat([boxes[:, :2] - half, boxes[:, :2] + half], dim=1)


def corners_of_boxes(boxes: Float[Tensor, "b 4"]) -> Float[Tensor, "b 4"]:
    """Left, top, width and height to left, top, right and bottom."""
    return torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1)
