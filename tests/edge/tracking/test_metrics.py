"""Arithmetic of metrics against hand-computed values and slow loops."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgemim.edge.tracking import metrics
from edgemim.edge.tracking.metrics import Curves, FrameErrors, curves, mean_curves, percentages


def errors(overlap: list[float], centre: list[float], valid: list[bool] | None = None, length: int = 0) -> FrameErrors:
    """Figures of a few frames; normalised errors are a hundredth of the others."""
    centre_px = np.array(centre, float)
    known = np.array(valid if valid is not None else [True] * len(overlap))
    return FrameErrors(np.array(overlap, float), centre_px, centre_px / 100, known, length or len(overlap))


def test_thresholds_are_the_published_ones() -> None:
    assert metrics.SUCCESS_THRESHOLDS.tolist() == pytest.approx([k / 20 for k in range(21)])
    assert metrics.PRECISION_THRESHOLDS_PX.tolist() == list(range(51))
    assert metrics.NORM_THRESHOLDS.tolist() == pytest.approx([k / 100 for k in range(51)])


def test_success_is_strict_and_precision_is_not() -> None:
    curve = curves(errors([0.0, 0.5, 1.0, 0.51], [0, 20, 21, 50]))
    assert curve.success[[0, 10, 20]].tolist() == [0.75, 0.5, 0.0]
    assert curve.precision[[0, 20, 21, 50]].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.norm_precision[[0, 20, 21, 50]].tolist() == [0.25, 0.5, 0.75, 1.0]
    assert curve.average_overlap == pytest.approx(2.01 / 4)


def test_a_perfect_tracker_stays_at_twenty_of_twenty_one_points() -> None:
    values = percentages(curves(errors([1.0] * 7, [0.0] * 7)))
    assert values == pytest.approx(
        {"auc": 2000 / 21, "op50": 100, "op75": 100, "precision": 100, "norm_precision": 100}
    )


def test_frames_that_are_not_measured_count_in_the_length() -> None:
    curve = curves(errors([0.9, -1.0], [3, math.inf], [True, False], length=4))
    assert curve.success[0] == 0.25 and curve.precision[-1] == 0.25
    assert curve.average_overlap == pytest.approx(0.9)
    assert curves(errors([-1.0], [-1.0])).precision[0] == 1.0  # the -1 of some toolkits is a hit


def test_nothing_to_measure_is_not_zero() -> None:
    curve = curves(FrameErrors(*(np.zeros(0) for _ in range(3)), np.zeros(0, bool), 0))
    assert np.isnan(curve.success).all() and math.isnan(curve.average_overlap)
    mean = mean_curves([curve, curves(errors([0.6], [1]))])
    assert percentages(mean)["op50"] == 100 and mean.average_overlap == pytest.approx(0.6)
    assert np.isnan(mean_curves([curve]).success).all()


def test_every_sequence_counts_alike() -> None:
    long, short = curves(errors([0.9] * 9 + [0.0], [0] * 10)), curves(errors([0.0], [99]))
    mean = mean_curves([long, short])
    assert isinstance(mean, Curves) and mean.success[0] == pytest.approx(0.45)


def test_distances_by_hand() -> None:
    first, second = np.array([[10.0, 20, 5, 7]]), np.array([[13.0, 24, 5, 7]])
    assert metrics.centre_errors(first, second).tolist() == [5.0]
    assert metrics.pixel_centres(first).tolist() == [[12, 23]]
    # Another size moves the middle pixel by half of the difference.
    assert metrics.centre_errors(first, np.array([[10.0, 20, 7, 7]])).tolist() == [1.0]
    per_axis = metrics.centre_errors(first, second, second[:, 2:])
    assert per_axis == pytest.approx([math.hypot(3 / 5, 4 / 7)])


def test_inclusive_overlap_by_hand() -> None:
    boxes = np.array([[0.0, 0, 4, 4], [0, 0, 4, 4], [0, 0, 4, 4]])
    others = np.array([[0.0, 0, 4, 4], [2, 0, 4, 4], [4, 4, 4, 4]])
    assert metrics.inclusive_iou(boxes, others).tolist() == [1.0, 8 / 24, 0.0]
    assert np.isnan(metrics.inclusive_iou(np.zeros((1, 4)), np.zeros((1, 4)))).all()
