import gc
import time
from collections.abc import Callable

import numpy as np
import pytest

from edgemim.edge import benchmark
from edgemim.edge.benchmark import (
    Block,
    Timing,
    interleave,
    measure,
    paired_ratio,
    paired_ratios,
    ratio_with_interval,
    run_block,
)
from edgemim.edge.machine import Load
from edgemim.errors import UserError


def timing(medians: list[float], foreign: float = 0.0) -> Timing:
    blocks = tuple(Block(np.full(5, median), 5 * median / 1000, 5 * median / 1000) for median in medians)
    return Timing(blocks, (foreign,) * len(medians))


def busy(milliseconds: float) -> Callable[[], None]:
    def work() -> None:
        end = time.thread_time_ns() + int(milliseconds * 1e6)
        while time.thread_time_ns() < end:
            pass

    return work


def recorder(order: list[str], name: str) -> Callable[[float, int], Block]:
    def block(seconds: float, runs: int) -> Block:
        order.append(name)
        return Block(np.ones(max(runs, 1)), seconds, seconds or 1.0)

    return block


def test_percentiles_are_those_of_all_runs() -> None:
    latencies = np.random.default_rng(0).gamma(3, 2, 1000)
    blocks = tuple(Block(part, 1.0, 2.0) for part in np.split(latencies, 5))
    found = Timing(blocks, (0.0, 0.02, 0.04, 0.5, 0.03))
    summary = found.summary(batch=8)
    for percent in (50, 90, 99):
        assert summary[f"latency_p{percent}_ms"] == pytest.approx(np.percentile(latencies, percent))
    assert summary["throughput_images_per_s"] == pytest.approx(8000 / latencies.mean())
    assert summary["runs"] == 1000
    assert summary["cpus_used"] == 0.5
    assert (summary["foreign_load"], summary["disturbed"]) == (0.03, False)
    assert summary["block_medians_ms"] == pytest.approx([np.median(part) for part in np.split(latencies, 5)])


def test_measure_tells_a_slow_case_from_a_fast_one() -> None:
    found = measure({"fast": busy(2), "slow": busy(6)}, seconds=0.3)
    assert len(found["fast"].blocks) == len(found["slow"].blocks) == 5
    assert found["fast"].percentile_ms(0) >= 2
    assert found["slow"].percentile_ms(0) >= 6
    assert np.percentile(paired_ratios(found["slow"], found["fast"]), 50) > 1.5


def test_runs_and_seconds_are_least_amounts() -> None:
    assert len(measure({"a": lambda: None}, seconds=0.0, runs=50)["a"].latencies_ms) == 50
    assert len(measure({"a": lambda: None}, seconds=0.0, runs=51)["a"].latencies_ms) >= 51
    block = run_block(busy(1), 0.1, 0)
    assert block.wall_seconds >= 0.1
    assert block.latencies_ms.sum() == pytest.approx(1000 * block.wall_seconds, rel=1e-6)
    assert 0 < block.cpu_seconds < 1.2 * block.wall_seconds


def test_the_warm_up_is_not_counted() -> None:
    waits = iter([0.2] * 2)
    found = run_block(lambda: time.sleep(next(waits, 0.0)), 0.0, 10)
    assert found.latencies_ms.max() < 200


def test_blocks_take_turns_and_every_second_round_goes_backwards() -> None:
    order: list[str] = []
    steps: list[int] = []
    runners = {name: recorder(order, name) for name in "abc"}
    interleave(runners, blocks=5, on_block=lambda: steps.append(1))
    assert "".join(order) == "abc" + "abc" + "cba" + "abc" + "cba" + "abc"
    assert len(steps) == len(order)


def test_foreign_load_is_kept_block_by_block(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = iter([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9])

    given: list[object] = []

    class Meter:
        def __init__(self, pids: object) -> None:
            given.append(pids)

        def restart(self) -> None:
            pass

        def stop(self) -> Load:
            return Load(own=0.0, foreign=next(loads), seconds=1.0)

    monkeypatch.setattr(benchmark, "LoadMeter", Meter)
    found = interleave({name: recorder([], name) for name in "ab"}, pids=[5])
    assert given == [[5]]
    assert found["a"].foreign_load == (0.0, 0.3, 0.4, 0.7, 0.8)
    assert found["b"].foreign_load == (0.1, 0.2, 0.5, 0.6, 0.9)


def test_fewer_than_five_blocks_are_refused() -> None:
    with pytest.raises(UserError, match="at least 5"):
        measure({"a": lambda: None}, blocks=4)


def test_an_error_of_a_case_passes_through() -> None:
    with pytest.raises(ZeroDivisionError):
        measure({"a": lambda: 1 / 0}, seconds=0.1)


def test_paired_ratio_cancels_a_drift_that_both_share() -> None:
    drift = [1.0, 2.0, 4.0, 3.0, 1.5]
    ratio, disturbed = paired_ratio(timing([7 * step for step in drift]), timing([10 * step for step in drift]))
    assert ratio == pytest.approx(0.7)
    assert not disturbed


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [
        (timing([7] * 5), timing([10] * 5), False),
        (timing([7] * 5, foreign=0.11), timing([10] * 5), True),
        (timing([7] * 5), timing([10] * 5, foreign=0.11), True),
        (timing([7] * 5, foreign=0.1), timing([10] * 5, foreign=0.1), False),
        (timing([7, 9, 11, 13, 6]), timing([10] * 5), True),
        (timing([7, 7, 7, 30, 7]), timing([10] * 5), False),  # one bad block does not move the middle half
    ],
)
def test_what_counts_as_disturbed(a: Timing, b: Timing, expected: bool) -> None:
    assert paired_ratio(a, b)[1] is expected


def test_garbage_collection_is_on_again() -> None:
    run_block(lambda: None, 0.0, 3)
    assert gc.isenabled()


def test_the_interval_of_a_median_holds_it_as_often_as_it_says() -> None:
    generator = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        medians = 10 + generator.standard_normal(20)  # of blocks whose true median is 10
        blocks = tuple(Block(generator.normal(middle, 0.1, 30), 0.3, 0.3) for middle in medians)
        low, high = Timing(blocks, (0.0,) * 20).median_interval_ms
        hits += low <= 10 <= high
    assert 0.88 <= hits / 200 <= 1.0


def test_five_blocks_give_the_interval_from_the_least_to_the_largest_ratio() -> None:
    ratio = ratio_with_interval(timing([10.0, 12.0, 11.0, 14.0, 13.0]), timing([10.0] * 5))
    assert (ratio.low, ratio.middle, ratio.high) == pytest.approx((1.0, 1.2, 1.4))
    assert ratio.undecided
    assert ratio.times(10).high == pytest.approx(14)
    assert not ratio_with_interval(timing([12.0] * 5), timing([10.0] * 5)).undecided


def test_drift_is_last_blocks_over_first() -> None:
    assert timing([10, 10, 99, 12, 12]).drift == pytest.approx(1.2)
    assert timing([10, 11, 12]).summary()["drift"] == pytest.approx(11.5 / 10.5)
