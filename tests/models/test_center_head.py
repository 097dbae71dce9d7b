"""The centre head: its size as published, its bounds, and boxes decoded against a slow obvious version."""

from __future__ import annotations

from itertools import pairwise

import pytest

torch = pytest.importorskip("torch")

from torch import Tensor, nn  # noqa: E402

from edgemim.models.center_head import CenterHead, TrackMaps, decode_boxes  # noqa: E402


def test_parameters_of_the_published_head() -> None:
    """Counted from OSTrack's description: three stacks of 3x3 convolutions with bias and batch norm."""
    widths = [192, 256, 128, 64, 32]
    stack = sum(9 * a * b + b + 2 * b for a, b in pairwise(widths))
    expected = 3 * stack + (32 + 1) + 2 * (2 * 32 + 2)
    assert sum(p.numel() for p in CenterHead(192, 256).parameters()) == expected == 2_492_805


def test_score_and_size_are_bounded_the_offset_is_not() -> None:
    torch.manual_seed(0)
    head = CenterHead(8, 16).train()  # by its own statistics every channel is centred
    for stack in (head.score, head.offset, head.size):
        last = stack[-1]
        assert isinstance(last, nn.Conv2d)
        last.weight.data = torch.tensor([500.0, -500.0])[:, None, None].expand_as(last.weight).clone()
    with torch.no_grad():
        maps = head(torch.randn(4, 8, 6, 6))
    for part in (maps.score, maps.size):
        assert float(part.min()) == pytest.approx(1e-4) and float(part.max()) == pytest.approx(1 - 1e-4)
    assert maps.offset.abs().max() > 1
    assert [part.shape for part in maps] == [(4, 1, 6, 6), (4, 2, 6, 6), (4, 2, 6, 6)]


def slow_boxes(maps: TrackMaps, window: Tensor | None) -> list[list[float]]:
    """Cell by cell."""
    boxes = []
    for score, offset, size in zip(*(part.tolist() for part in maps), strict=True):
        side, best, found = len(score[0]), -1.0, [0.0] * 4
        for row in range(side):
            for column in range(side):
                value = score[0][row][column] * (1 if window is None else float(window[row, column]))
                if value > best:
                    best = value
                    x = (column + offset[0][row][column]) / side
                    y = (row + offset[1][row][column]) / side
                    found = [x, y, size[0][row][column], size[1][row][column]]
        boxes.append(found)
    return boxes


@pytest.mark.parametrize("windowed", [False, True])
def test_boxes_are_those_of_a_slow_version(windowed: bool) -> None:
    generator = torch.Generator().manual_seed(3)
    maps = TrackMaps(*(torch.rand(5, channels, 7, 7, generator=generator) for channels in (1, 2, 2)))
    window = torch.rand(7, 7, generator=generator) if windowed else None
    assert torch.allclose(decode_boxes(maps, window), torch.tensor(slow_boxes(maps, window)), atol=1e-6)


def test_the_box_carries_gradients_of_its_own_cell_alone() -> None:
    maps = TrackMaps(torch.rand(1, 1, 4, 4), torch.rand(1, 2, 4, 4, requires_grad=True), torch.rand(1, 2, 4, 4))
    decode_boxes(maps).sum().backward()
    assert maps.offset.grad is not None
    assert int((maps.offset.grad != 0).sum()) == 2
