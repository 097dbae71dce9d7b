"""Reading boxes in every spelling, and their arithmetic against hand-computed and rasterised values."""

from __future__ import annotations

import numpy as np
import pytest

from edgemim.edge.tracking.boxes import Box, centres, clip_box, has_area, iou, parse_boxes, polygon_to_box
from edgemim.errors import UserError


@pytest.mark.parametrize(
    "text",
    ["1,2,3,4\n5,6,7,8\n", "1\t2\t3\t4\n5\t6\t7\t8", "1 2 3 4\r\n5, 6,\t7 8\r\n\r\n", "1;2;3;4\n5.0,6.00,7e0,8,\n"],
)
def test_every_delimiter_is_read(text: str) -> None:
    assert parse_boxes(text, "x").tolist() == [[1, 2, 3, 4], [5, 6, 7, 8]]


def test_nan_is_a_number_and_nothing_is_no_box() -> None:
    assert np.isnan(parse_boxes("nan,nan,nan,nan\nNaN NaN NaN NaN", "x")).all()
    assert parse_boxes("\n\n", "x").shape == (0, 4)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1,2,3,4\n1,2,3", "gt.txt, line 2: 3 numbers, expected 4"),
        ("1,2,3,4,5,6,7,8", "line 1: 8 numbers"),
        ("1,2,3,4\n\n1,2,3,4", "line 2: 0 numbers"),
        ("1,2,x,4", "'1,2,x,4' is not a row of numbers"),
    ],
)
def test_a_wrong_row_is_named(text: str, words: str) -> None:
    with pytest.raises(UserError, match=r"gt\.txt") as caught:
        parse_boxes(text, "gt.txt")
    assert words in str(caught.value)


def test_polygons_become_upright_boxes() -> None:
    rows = parse_boxes("334.02,128.36,438.19,188.78,396.39,260.83,292.23,200.41\n1,2,3,4", "x", polygons=True)
    assert rows[0] == pytest.approx([292.23, 128.36, 145.96, 132.47])
    assert rows[1].tolist() == [1, 2, 3, 4]
    assert polygon_to_box(np.zeros((3, 8))).shape == (3, 4)
    with pytest.raises(UserError, match="holds a mask"):
        parse_boxes("m0,0,3,4,1,2,3", "x", polygons=True)


def test_overlap_counts_the_pixels() -> None:
    generator = np.random.default_rng(1)
    first, second = (
        np.concatenate([generator.integers(0, 20, (60, 2)), generator.integers(1, 20, (60, 2))], 1) for _ in range(2)
    )
    painted = np.zeros((2, 60, 40, 40), bool)
    for which, boxes in enumerate((first, second)):
        for row, (left, top, width, height) in enumerate(boxes):
            painted[which, row, top : top + height, left : left + width] = True
    expected = (painted[0] & painted[1]).sum((1, 2)) / (painted[0] | painted[1]).sum((1, 2))
    assert iou(first.astype(float), second.astype(float)) == pytest.approx(expected)
    assert 0 < (expected > 0).sum() < 60


def test_a_box_without_area_overlaps_nothing() -> None:
    real = np.array([[0.0, 0, 10, 10]] * 4)
    odd = np.array([[np.nan, 0, 10, 10], [0, 0, 0, 10], [0, 0, -5, -5], [np.inf, 0, 1, 1]])
    assert iou(odd, real).tolist() == [0, 0, 0, 0]
    assert iou(odd, odd).tolist() == [0, 0, 0, 0]
    assert has_area(odd).tolist() == [False] * 4 and has_area(real[0])
    assert centres(real[0]).tolist() == [5, 5]


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        (Box(20, 30, 40, 50), Box(20, 30, 40, 50)),
        (Box(-30, -5, 60, 20), Box(0, 0, 30, 15)),
        (Box(90, 70, 40, 40), Box(90, 70, 10, 10)),  # 10 × 10 are left of it
        (Box(200, 200, 5, 5), Box(90, 70, 10, 10)),
        (Box(-50, -50, 20, 20), Box(0, 0, 10, 10)),
        (Box(50, 40, 2, 3), Box(50, 40, 10, 10)),
    ],
)
def test_a_clipped_box_keeps_its_margin_inside(box: Box, expected: Box) -> None:
    assert clip_box(box, 100, 80, margin=10) == expected
