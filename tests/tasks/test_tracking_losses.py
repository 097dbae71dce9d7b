"""What trackers are trained on, against slow obvious versions and torchvision's boxes."""

from __future__ import annotations

import math

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor  # noqa: E402

from edgemim.models.center_head import TrackMaps  # noqa: E402
from edgemim.tasks.tracking_losses import (  # noqa: E402
    corners_of_boxes,
    corners_of_centres,
    focal_loss,
    gaussian_maps,
    gaussian_radius,
    iou_and_giou,
    tracking_losses,
)

BOXES = torch.tensor([[0.3, 0.2, 0.4, 0.3], [0.05, 0.6, 0.1, 0.3], [0.9, 0.9, 0.2, 0.2], [0.5, 0.5, 0.001, 0.9]])


def slow_heat(box: list[float], grid: int) -> list[list[float]]:
    """Cell by cell, with the radius as CornerNet's code computes it."""
    x, y, w, h = (value * grid for value in box)
    centre = (round(x + w / 2), round(y + h / 2))
    roots = []
    for a, b, c in ((1, h + w, w * h * 0.3 / 1.7), (4, 2 * (h + w), 0.3 * w * h), (2.8, -1.4 * (h + w), -0.3 * w * h)):
        roots.append((b + math.sqrt(b * b - 4 * a * c)) / 2)
    radius = int(max(0.0, min(roots)))
    deviation = (2 * radius + 1) / 6
    heat = []
    for row in range(grid):
        line = []
        for column in range(grid):
            dx, dy = column - centre[0], row - centre[1]
            near = abs(dx) <= radius and abs(dy) <= radius
            line.append(math.exp(-(dx * dx + dy * dy) / (2 * deviation**2)) if near else 0.0)
        heat.append(line)
    return heat


@pytest.mark.parametrize("grid", [8, 16, 20])
def test_heat_maps(grid: int) -> None:
    expected = torch.tensor([slow_heat(box, grid) for box in BOXES.tolist()])
    assert torch.allclose(gaussian_maps(BOXES, grid), expected, atol=1e-6)


def test_a_centre_beyond_the_last_cell_has_no_peak() -> None:
    heat = gaussian_maps(torch.tensor([[0.9, 0.9, 0.2, 0.2]]), 16)
    assert heat.max() < 1


def test_the_radius_keeps_the_overlap_where_the_published_formula_is_right() -> None:
    """Shifted apart diagonally by the radius, a box of that size still overlaps by 0.7: only the first root is exact."""
    side = 12.0
    shift = float(gaussian_radius(torch.tensor([[side, side]])))
    b, c = 2 * side, side * side * 0.3 / 1.7
    assert shift <= (b + math.sqrt(b * b - 4 * c)) / 2


def slow_focal(score: Tensor, heat: Tensor) -> float:
    total, count = 0.0, 0
    for p, t in zip(score.flatten().tolist(), heat.flatten().tolist(), strict=True):
        if t == 1:
            total += math.log(p) * (1 - p) ** 2
            count += 1
        else:
            total += math.log(1 - p) * p**2 * (1 - t) ** 4
    return -total / max(count, 1)


@pytest.mark.parametrize("scale", [1.0, 0.9])
def test_focal_loss_with_and_without_a_centre(scale: float) -> None:
    heat = scale * gaussian_maps(BOXES, 16)
    score = torch.rand(4, 16, 16, generator=torch.Generator().manual_seed(0)).clamp(1e-4, 1 - 1e-4)
    assert float(focal_loss(score, heat)) == pytest.approx(slow_focal(score, heat), rel=1e-5)


def test_overlaps_are_torchvisions() -> None:
    from torchvision.ops import box_iou, generalized_box_iou

    generator = torch.Generator().manual_seed(0)
    a, b = (corners_of_boxes(torch.rand(50, 4, generator=generator)) for _ in range(2))
    iou, giou = iou_and_giou(a, b)
    assert torch.allclose(iou, box_iou(a, b).diagonal(), atol=1e-6)
    assert torch.allclose(giou, generalized_box_iou(a, b).diagonal(), atol=1e-6)
    assert iou_and_giou(a, a)[1].tolist() == pytest.approx([1.0] * 50)


def test_corners() -> None:
    assert corners_of_centres(torch.tensor([[0.5, 0.4, 0.2, 0.6]]))[0].tolist() == pytest.approx([0.4, 0.1, 0.6, 0.7])
    assert corners_of_boxes(torch.tensor([[0.5, 0.4, 0.2, 0.6]]))[0].tolist() == pytest.approx([0.5, 0.4, 0.7, 1.0])


def perfect(grid: int, box: tuple[float, float, float, float]) -> TrackMaps:
    """Maps that say exactly where a box is."""
    x, y = (box[0] + box[2] / 2) * grid, (box[1] + box[3] / 2) * grid
    score = torch.full((1, 1, grid, grid), 1e-4)
    score[0, 0, round(y), round(x)] = 1 - 1e-4
    offset, size = torch.zeros(1, 2, grid, grid), torch.zeros(1, 2, grid, grid)
    offset[0, :, round(y), round(x)] = torch.tensor([x - round(x), y - round(y)])
    size[0, :, round(y), round(x)] = torch.tensor(box[2:])
    return TrackMaps(score, offset, size)


def test_what_is_right_costs_nothing() -> None:
    losses = tracking_losses(perfect(16, (0.3, 0.2, 0.4, 0.3)), torch.tensor([[0.3, 0.2, 0.4, 0.3]]))
    assert float(losses.giou) == pytest.approx(0, abs=1e-5) and float(losses.l1) == pytest.approx(0, abs=1e-6)
    assert float(losses.mean_iou) == pytest.approx(1, abs=1e-5)
    assert float(losses.focal) < 1e-4


def test_true_corners_end_at_the_region() -> None:
    """As published: a target that sticks out counts for its visible part."""
    losses = tracking_losses(perfect(16, (0.5, 0.5, 0.5, 0.5)), torch.tensor([[0.5, 0.5, 0.8, 0.9]]))
    assert float(losses.mean_iou) == pytest.approx(1, abs=1e-5)
