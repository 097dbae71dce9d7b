"""Percentiles of every stage and of their sums, frame by frame."""

import time

import numpy as np
import pytest

from edgemim.edge.tracking.boxes import Box
from edgemim.edge.tracking.latency import StageTimes, Stopwatch
from edgemim.edge.tracking.tracker import Tracked


def tracked(crop: float, infer: float, post: float) -> Tracked:
    return Tracked(Box(0, 0, 1, 1), 0.9, False, crop, infer, post)


def test_percentiles_against_numpy_and_sums_are_of_one_frame() -> None:
    generator = np.random.default_rng(0)
    rows = generator.uniform(1, 10, (101, 6))
    times = StageTimes()
    for decode, crop, infer, post, draw, write in rows:
        times.add(decode, tracked(crop, infer, post), draw=draw, write=write)
    found = times.summary()
    assert list(found) == ["decode", "crop", "infer", "post", "draw", "write", "end_to_end", "frame"]
    for name, column in zip(found, [*rows.T, rows[:, :4].sum(1), rows.sum(1)], strict=True):
        expected = [column.mean(), *np.percentile(column, [50, 90, 99])]
        assert [found[name][key] for key in ("mean_ms", "p50_ms", "p90_ms", "p99_ms")] == pytest.approx(expected)


def test_speed_is_of_the_newest_frames() -> None:
    times = StageTimes()
    assert times.recent_fps() == 0 and times.summary() == {}
    for _ in range(50):
        times.add(50, tracked(20, 20, 10))
    assert times.recent_fps() == pytest.approx(10)
    for _ in range(30):
        times.add(2, tracked(1, 6, 1), write=500)
    assert times.recent_fps() == pytest.approx(100)


def test_stopwatch_counts_from_the_last_lap() -> None:
    watch = Stopwatch()
    time.sleep(0.02)
    assert 19 < watch.lap_ms() < 500
    assert watch.lap_ms() < 15
