"""Time several cases side by side: interleaved blocks, latency percentiles, paired ratios, foreign load."""

from __future__ import annotations

import functools
import gc
import statistics
import time
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeVar

import numpy as np

from edgemim.edge.machine import LoadMeter
from edgemim.errors import UserError

MIN_BLOCKS = 5
# Above this share of the CPUs taken by others, times are no longer this machine's (shared box: 25 -> 130 ms was seen).
DISTURBED_ABOVE = 0.10
# Interquartile range of the paired ratios over their median: above it the blocks contradict each other.
SPREAD_ABOVE = 0.20
_WARM_UP_SECONDS = 0.5
_RESAMPLES = 1000
_RUNS_RESAMPLED = 101  # of a block; a fast model's thousands of runs say no more about the block's median
_BLOCK_WARM_UP_RUNS = 2
_MIN_RUNS = 3


class Block(NamedTuple):
    """What one case did in one block: a latency for each run, and the CPU time and wall time of the timed runs."""

    latencies_ms: np.ndarray
    cpu_seconds: float
    wall_seconds: float


Runner = Callable[[float, int], Block]
"""Runs one block: at least so many seconds and so many runs."""

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Timing:
    """All blocks of one case, in the order of measurement, with the share of the CPUs that others took in each."""

    blocks: tuple[Block, ...]
    foreign_load: tuple[float, ...]

    @functools.cached_property
    def latencies_ms(self) -> np.ndarray:
        """Every run's latency."""
        return np.concatenate([block.latencies_ms for block in self.blocks])

    @property
    def block_medians_ms(self) -> list[float]:
        """Median latency of each block."""
        return [float(np.median(block.latencies_ms)) for block in self.blocks]

    def percentile_ms(self, percent: float) -> float:
        """Latency that so many percent of the runs do not exceed."""
        return float(np.percentile(self.latencies_ms, percent))

    @property
    def median_foreign_load(self) -> float:
        """Share of the CPUs that other processes took, median over the blocks."""
        return statistics.median(self.foreign_load)

    @property
    def cpus_used(self) -> float:
        """CPUs that the case kept busy: what its thread count came to."""
        wall = sum(block.wall_seconds for block in self.blocks)
        return sum(block.cpu_seconds for block in self.blocks) / wall

    @property
    def disturbed(self) -> bool:
        """Whether others took more than DISTURBED_ABOVE of the CPUs."""
        return self.median_foreign_load > DISTURBED_ABOVE

    @functools.cached_property
    def median_interval_ms(self) -> tuple[float, float]:
        """95 % confidence interval of the median latency: whole blocks are drawn anew, as their runs hang together."""
        quantiles = np.linspace(0, 100, _RUNS_RESAMPLED)
        runs = np.stack([np.percentile(block.latencies_ms, quantiles) for block in self.blocks])
        drawn = runs[_draws(len(runs))].reshape(_RESAMPLES, -1)
        low, high = np.percentile(np.median(drawn, axis=1), [2.5, 97.5])
        middle = self.percentile_ms(50)
        return min(float(low), middle), max(float(high), middle)

    @property
    def drift(self) -> float:
        """Median latency of the last two blocks over that of the first two: above 1 where the machine became slower."""
        medians = self.block_medians_ms
        return statistics.mean(medians[-2:]) / statistics.mean(medians[:2])

    def summary(self, batch: int = 1) -> dict[str, Any]:
        """Figures for a table; throughput counts `batch` images a run."""
        low, high = self.median_interval_ms
        return {
            "latency_p50_ms": self.percentile_ms(50),
            "latency_p50_low_ms": low,
            "latency_p50_high_ms": high,
            "latency_p90_ms": self.percentile_ms(90),
            "latency_p99_ms": self.percentile_ms(99),
            "latency_mean_ms": float(self.latencies_ms.mean()),
            "latency_min_ms": float(self.latencies_ms.min()),
            "throughput_images_per_s": 1000 * batch / float(self.latencies_ms.mean()),
            "runs": len(self.latencies_ms),
            "block_medians_ms": self.block_medians_ms,
            "drift": self.drift,
            "cpus_used": self.cpus_used,
            "foreign_load": self.median_foreign_load,
            "disturbed": self.disturbed,
        }


def measure(
    cases: Mapping[Name, Callable[[], object]], *, seconds: float = 2.0, runs: int = 0, blocks: int = MIN_BLOCKS
) -> dict[Name, Timing]:
    """Time callables of this process, interleaved.

    `seconds` and `runs` are least amounts for each case over all blocks. Raises UserError on fewer than 5 blocks.
    """
    return interleave(
        {name: functools.partial(run_block, call) for name, call in cases.items()},
        seconds=seconds,
        runs=runs,
        blocks=blocks,
    )


def interleave(
    runners: Mapping[Name, Runner],
    *,
    seconds: float = 2.0,
    runs: int = 0,
    blocks: int = MIN_BLOCKS,
    pids: Sequence[int] = (),
    on_block: Callable[[], None] = lambda: None,
) -> dict[Name, Timing]:
    """Time runners in turns, block by block, after a warm-up block each; every second round goes backwards.

    So a slow drift of the machine meets all cases alike, and block i of one case pairs with block i of another.
    CPU time of the processes `pids` counts as own. Raises UserError on fewer than 5 blocks.
    """
    if blocks < MIN_BLOCKS:
        raise UserError(f"blocks is {blocks}; at least {MIN_BLOCKS} are needed for paired ratios")
    for runner in runners.values():
        runner(min(_WARM_UP_SECONDS, seconds), 1)
        on_block()
    meter = LoadMeter(pids)
    found: dict[Name, list[tuple[Block, float]]] = {name: [] for name in runners}
    for turn in range(blocks):
        for name in list(runners)[:: 1 if turn % 2 == 0 else -1]:
            meter.restart()
            block = runners[name](seconds / blocks, -(-runs // blocks))
            found[name].append((block, meter.stop().foreign))
            on_block()
    return {
        name: Timing(tuple(block for block, _ in pairs), tuple(load for _, load in pairs))
        for name, pairs in found.items()
    }


def run_block(call: Callable[[], object], seconds: float, runs: int) -> Block:
    """Time single calls until both least amounts are reached, after two calls that bring caches and threads back."""
    for _ in range(_BLOCK_WARM_UP_RUNS):
        call()
    times_ns: list[int] = []
    collecting = gc.isenabled()
    gc.disable()
    try:
        cpu, began = time.process_time(), time.perf_counter_ns()
        last, end = began, began + int(seconds * 1e9)
        while last < end or len(times_ns) < max(runs, _MIN_RUNS):
            call()
            now = time.perf_counter_ns()
            times_ns.append(now - last)
            last = now
        cpu = time.process_time() - cpu
    finally:
        if collecting:
            gc.enable()
    return Block(np.asarray(times_ns) / 1e6, cpu, (last - began) / 1e9)


def paired_ratios(a: Timing, b: Timing) -> list[float]:
    """Time of `a` over time of `b`, block by block. Below 1 means that `a` is faster."""
    pairs = zip(a.block_medians_ms, b.block_medians_ms, strict=True)
    return [first / second for first, second in pairs]


def paired_ratio(a: Timing, b: Timing) -> tuple[float, bool]:
    """Median paired ratio of time, a / b, and whether the run was disturbed.

    Disturbed: others took more than 10 % of the CPUs, or the middle half of the ratios spreads over more than 20 % of
    their median.
    """
    ratios = paired_ratios(a, b)
    low, middle, high = np.percentile(ratios, [25, 50, 75])
    return float(middle), bool(a.disturbed or b.disturbed or (high - low) / middle > SPREAD_ABOVE)


class Ratio(NamedTuple):
    """How many times faster `b` is than `a`, or slower."""

    middle: float
    low: float
    high: float
    """95 % confidence interval."""
    disturbed: bool

    @property
    def undecided(self) -> bool:
        """Whether it may as well be 1."""
        return self.disturbed or self.low <= 1 <= self.high

    def times(self, factor: float) -> Ratio:
        """The same of another unit."""
        return Ratio(self.middle * factor, self.low * factor, self.high * factor, self.disturbed)


def ratio_with_interval(a: Timing, b: Timing) -> Ratio:
    """Median paired ratio of time, a / b, and its 95 % confidence interval by drawing pairs of blocks anew.

    With five blocks the interval is from the least to the largest ratio, as it must be: so few cannot say more.
    """
    ratios = np.asarray(paired_ratios(a, b))
    low, high = np.percentile(np.median(ratios[_draws(len(ratios))], axis=1), [2.5, 97.5])
    middle, disturbed = paired_ratio(a, b)
    return Ratio(middle, float(low), float(high), disturbed)


@functools.cache
def _draws(blocks: int) -> np.ndarray:
    """Numbers of blocks, drawn with repetition, [resamples, blocks]; the same each time."""
    return np.random.default_rng(0).integers(0, blocks, (_RESAMPLES, blocks))
