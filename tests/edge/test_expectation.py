"""Expected latencies: the arithmetic of the range, and the floor that memory sets."""

import pytest

from edgemim.edge.expectation import REACHED, VIT_TINY, Load, expect
from edgemim.edge.roofline import Roofline

# Rooflines and latencies of ViT-Tiny (ms; ONNX Runtime, OpenVINO) as measured on two virtual CPUs of either kind, quiet.
ROOFLINES = {
    "xeon": {1: Roofline(1, 138, 523, 10, {}, 0), 2: Roofline(2, 278, 1021, 10, {}, 0)},
    "epyc": {1: Roofline(1, 114, 448, 17, {}, 0), 2: Roofline(2, 229, 858, 24, {}, 0)},
}
MEASURED = {
    ("xeon", "fp32", 1): (32.1, 24.8),
    ("xeon", "fp32", 2): (20.7, 15.3),
    ("xeon", "int8", 1): (21.4, 13.6),
    ("xeon", "int8", 2): (14.3, 9.9),
    ("epyc", "fp32", 1): (28.8, 29.5),
    ("epyc", "fp32", 2): (28.0, 20.7),
    ("epyc", "int8", 1): (15.4, 13.8),
    ("epyc", "int8", 2): (22.1, 11.5),
}


@pytest.mark.parametrize(("cpu", "precision", "threads"), MEASURED)
def test_the_range_holds_what_was_measured(cpu: str, precision: str, threads: int) -> None:
    expected = expect(VIT_TINY, precision, ROOFLINES[cpu][threads])
    assert all(expected.least_ms <= latency <= expected.most_ms for latency in MEASURED[cpu, precision, threads])
    assert expected.most_ms < 4 * expected.least_ms


def test_twice_the_speed_is_half_the_time() -> None:
    slow, fast = (expect(VIT_TINY, "fp32", Roofline(1, peak, 400, 1e6, {}, 0)) for peak in (50, 100))
    assert slow.least_ms == pytest.approx(2 * fast.least_ms)
    assert fast.least_ms == pytest.approx(2.507 / 100 * 1000 / REACHED["fp32"][1])


def test_no_run_is_faster_than_its_weights_are_read() -> None:
    big = Load("big", 0.1, 250_000_000)
    expected = expect(big, "fp32", Roofline(2, 1000, 4000, 10, {}, 0))
    assert expected.least_ms == expected.most_ms == pytest.approx(100)
    assert "100 ms" in expected.derived
    assert expect(big, "int8", Roofline(2, 1000, 4000, 10, {}, 0)).least_ms == pytest.approx(25)
