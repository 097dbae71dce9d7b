"""Two trackers compared by their boxes."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("torch")

from edgemim.errors import UserError
from edgemim.tasks.tracking_comparison import compare_boxes, found_box, overlap
from edgemim.tasks.tracking_pairs import Pair

Maps = dict[str, np.ndarray]


def pointing(column: int, row: int, width: float = 0.25, height: float = 0.5) -> Maps:
    """Maps of a 4 x 4 grid that point at a cell's first corner."""
    score, offset, size = np.full((1, 1, 4, 4), 0.1, np.float32), np.zeros((1, 2, 4, 4)), np.zeros((1, 2, 4, 4))
    score[0, 0, row, column] = 0.9
    size[0, :, row, column] = width, height
    return {"score": score, "offset": offset, "size": size}


class Fixed:
    """A session that answers the same maps, one after another."""

    runtime, precision, threads = "fixed", "fp32", 1

    def __init__(self, *answers: Maps) -> None:
        self._answers = iter(answers)

    def run(self, inputs: Maps) -> Maps:
        del inputs
        return next(self._answers)


def pair(*box: float) -> tuple[Maps, Pair]:
    empty = np.zeros(0)
    return {}, Pair(empty, empty, empty, np.array(box, np.float32))


def test_boxes_of_maps() -> None:
    assert found_box(pointing(2, 1)).tolist() == pytest.approx([0.375, 0.0, 0.25, 0.5])


def test_figures_of_two_pairs() -> None:
    original = Fixed(pointing(2, 1), pointing(2, 2))
    other = Fixed(pointing(2, 1), pointing(0, 0))
    pairs = [pair(0.375, 0.0, 0.25, 0.5), pair(0.375, 0.25, 0.25, 0.5)]
    found = compare_boxes(original, other, pairs)
    assert (found.metric, found.images, found.answers) == ("mean IoU", 2, "boxes")
    assert found.score_fp32 == pytest.approx(100) and found.score_int8 == pytest.approx(50)
    assert found.agreement == 50 and found.drop_points == pytest.approx(50)
    assert found.cosine_worst < found.cosine < 1


def test_maps_that_are_not_finite_overlap_nothing() -> None:
    broken = pointing(1, 1)
    broken["score"][:] = np.nan
    found = compare_boxes(Fixed(pointing(1, 1)), Fixed(broken), [pair(0.125, 0.0, 0.25, 0.5)])
    assert found.score_int8 == 0 and found.agreement == 0


def test_without_pairs() -> None:
    with pytest.raises(UserError, match="no held-out pairs"):
        compare_boxes(Fixed(), Fixed(), [])


def test_overlaps() -> None:
    assert overlap(np.array([0, 0, 2, 2.0]), np.array([1, 1, 2, 2.0])) == pytest.approx(1 / 7)
    assert overlap(np.array([0, 0, 1, 1.0]), np.array([2, 2, 1, 1.0])) == 0
    assert overlap(np.array([0, 0, 0, 0.0]), np.array([0, 0, 0, 0.0])) == 0
