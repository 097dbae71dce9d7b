"""What INT8 lost is counted right; a disturbed timing is repeated, then undecided, never refused or praised."""

from __future__ import annotations

import numpy as np
import pytest
from small_run import stopwatch, timings

from edgemim.edge.machine import usable_cpus
from edgemim.errors import UserError
from edgemim.export import fidelity
from edgemim.export.fidelity import Speed, compare_models, summarise, thread_counts, time_models


class Table:
    """A session that answers with the rows of a table."""

    runtime, precision = "table", "fp32"

    def __init__(self, rows, threads: int = 1) -> None:
        self.rows, self.threads = np.asarray(rows, np.float32), threads

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"logits": self.rows[inputs["images"][:, 0].astype(int)]}


ROWS = [[2, 0, 0], [0, 2, 0], [0, 0, 2], [3, 0, 4]]
INDICES = np.arange(4, dtype=np.float32)[:, None]


def test_counts_by_hand() -> None:
    int8 = [[2, 0, 0], [0, 2, 0], [0, 2, 0], [4, 0, 3]]  # the third and fourth answers differ
    labels = np.array([0, 1, 2, 0])
    found = compare_models(Table(ROWS), Table(int8), [(INDICES[:3], labels[:3]), (INDICES[3:], labels[3:])])
    assert (found.images, found.labelled) == (4, 4)
    assert found.accuracy_fp32 == 75
    assert found.accuracy == 75
    assert found.drop_points == 0
    assert found.agreement == 50
    assert found.cosine == pytest.approx((1 + 1 + 0 + 24 / 25) / 4)
    assert found.cosine_worst == pytest.approx(0)


def test_images_without_labels_count_for_agreement_alone() -> None:
    int8 = [[2, 0, 0], [2, 0, 0], [0, 0, 2], [3, 0, 4]]
    found = compare_models(Table(ROWS), Table(int8), [(INDICES, np.array([0, 1, -1, -1]))])
    assert (found.images, found.labelled) == (4, 2)
    assert (found.accuracy_fp32, found.accuracy, found.drop_points) == (100, 50, 50)
    assert found.agreement == 75
    unlabelled = compare_models(Table(ROWS), Table(ROWS), [(INDICES, np.full(4, -1))])
    assert unlabelled.drop_points is None
    with pytest.raises(UserError, match="no held-out images"):
        compare_models(Table(ROWS), Table(ROWS), [])


QUIET_FAST, QUIET_SLOW = timings(2, 1), timings(2, 3)
DISTURBED = timings(2, 1, foreign=0.5)


@pytest.mark.parametrize(
    ("answers", "verdict", "ratio", "attempts"),
    [
        ([QUIET_FAST], "faster", 0.5, 1),
        ([QUIET_SLOW], "slower", 1.5, 1),
        ([timings(2, 2)], "slower", 1.0, 1),
        ([DISTURBED, QUIET_SLOW], "slower", 1.5, 2),
        ([DISTURBED], "undecided", 0.5, 3),
        ([timings(2, 3, foreign=0.6), timings(2, 1, foreign=0.2), timings(2, 3, foreign=0.4)], "undecided", 0.5, 3),
    ],
)
def test_verdicts(monkeypatch: pytest.MonkeyPatch, answers, verdict: str, ratio: float, attempts: int) -> None:
    monkeypatch.setattr(fidelity, "measure", stopwatch(*answers))
    inputs = {"images": INDICES}
    speed = time_models(Table(ROWS), Table(ROWS, threads=2), inputs, seconds=0.1, attempts=3)
    assert (speed.verdict, speed.attempts, speed.threads) == (verdict, attempts, 2)
    assert speed.ratio == pytest.approx(ratio)


def test_a_real_measurement_tells_slow_from_fast() -> None:
    heavy, light = np.ones((400, 400), np.float32), np.ones((40, 40), np.float32)

    class Work(Table):
        def __init__(self, matrix: np.ndarray) -> None:
            super().__init__(ROWS)
            self.matrix = matrix

        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"logits": self.matrix @ self.matrix}

    speed = time_models(Work(heavy), Work(light), {}, seconds=0.05, attempts=1)
    assert speed.ratio < 0.5
    assert speed.int8_ms < speed.fp32_ms
    assert 0 <= speed.foreign_load <= 1


def speed(ratio: float, *, undecided: bool = False, threads: int = 1) -> Speed:
    return Speed(threads, ratio, undecided, 2.0, 2.0 * ratio, 0.0, 1)


def test_the_worst_decided_ratio_counts() -> None:
    assert summarise([speed(0.5), speed(0.8)]) == {"speed_ratio": 0.8, "speed_verdict": "faster"}
    assert summarise([speed(0.5), speed(1.8, undecided=True)])["speed_ratio"] == 0.5
    assert summarise([speed(0.5, undecided=True), speed(0.7, undecided=True)]) == {
        "speed_ratio": 0.7,
        "speed_verdict": "undecided",
    }


def test_thread_counts() -> None:
    assert thread_counts((1, 0, usable_cpus())) == list(dict.fromkeys([1, usable_cpus()]))
    with pytest.raises(UserError, match="-1"):
        thread_counts((-1,))
