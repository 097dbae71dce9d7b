"""A disturbed timing is repeated, then undecided, never refused or praised."""

from __future__ import annotations

import numpy as np
import pytest
from small_run import stopwatch, timings

from edgemim.edge.machine import usable_cpus
from edgemim.errors import UserError
from edgemim.export import fidelity
from edgemim.export.fidelity import Portions, Speed, summarise, thread_counts, time_models


class Table:
    """A session that answers with the rows of a table."""

    runtime, precision = "table", "fp32"

    def __init__(self, rows, threads: int = 1) -> None:
        self.rows, self.threads = np.asarray(rows, np.float32), threads

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return {"logits": self.rows[inputs["images"][:, 0].astype(int)]}


ROWS = [[2, 0, 0], [0, 2, 0], [0, 0, 2], [3, 0, 4]]
INDICES = np.arange(4, dtype=np.float32)[:, None]


def test_images_go_through_in_portions() -> None:
    """Dynamic ranges are shared by a batch: each portion is a batch of its own, a last one that is short is filled up."""
    seen: list[int] = []

    class Watched(Table):
        def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            seen.append(len(inputs["images"]))
            return super().run(inputs)

    for size, calls in ((1, [1, 1, 1, 1]), (3, [3, 3])):
        seen.clear()
        session = Portions(Watched(ROWS, threads=2), size)
        np.testing.assert_array_equal(session.run({"images": INDICES})["logits"], np.asarray(ROWS, np.float32))
        assert seen == calls
        assert (session.runtime, session.precision, session.threads) == ("table", "fp32", 2)


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
