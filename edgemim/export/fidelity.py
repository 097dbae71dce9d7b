"""How a quantised model is run beside its FP32 original, and the time of both, on the same runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemim.edge.benchmark import MIN_BLOCKS, measure, paired_ratio
from edgemim.edge.machine import usable_cpus
from edgemim.edge.runtime import Session
from edgemim.errors import UserError
from edgemim.export.parity import run_batched


class Portions:
    """A session that takes any number of images and computes `size` at a time, the last portion filled up.

    Images one by one are what a device sees: dynamic INT8 shares its ranges in a batch, so that neighbours would count.
    """

    def __init__(self, session: Session, size: int) -> None:
        self.runtime, self.precision, self.threads = session.runtime, session.precision, session.threads
        self._session, self._size = session, size

    def run(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Run images of any number, the one input [b, ...]."""
        [(name, images)] = inputs.items()
        return run_batched(self._session, name, images, self._size)


@dataclass(frozen=True)
class Speed:
    """Time of the quantised model over that of the original, with so many CPU threads.

    Attributes:
        threads: CPU threads of both.
        ratio: median over the blocks of their paired ratio; below 1 the quantised model is faster.
        undecided: every attempt was disturbed, so the ratio proves nothing.
        fp32_ms: median latency of the original, ms.
        int8_ms: median latency of the quantised model, ms.
        foreign_load: share of the CPUs that other processes took meanwhile.
        attempts: how often it was measured.
    """

    threads: int
    ratio: float
    undecided: bool
    fp32_ms: float
    int8_ms: float
    foreign_load: float
    attempts: int

    @property
    def verdict(self) -> str:
        """'faster', 'slower' or 'undecided'."""
        if self.undecided:
            return "undecided"
        return "faster" if self.ratio < 1 else "slower"


def time_models(
    fp32: Session,
    int8: Session,
    inputs: dict[str, np.ndarray],
    *,
    seconds: float,
    attempts: int,
) -> Speed:
    """Time two sessions of equal threads in interleaved blocks, again while others disturb, up to so many attempts.

    `seconds` is the least time for each of the two in one attempt. Of disturbed attempts only, the quietest counts.
    """
    cases = {"fp32": lambda: fp32.run(inputs), "int8": lambda: int8.run(inputs)}
    found: list[Speed] = []
    while len(found) < max(1, attempts) and (not found or found[-1].undecided):
        timings = measure(cases, seconds=seconds, blocks=MIN_BLOCKS)
        ratio, disturbed = paired_ratio(timings["int8"], timings["fp32"])
        found.append(
            Speed(
                threads=int8.threads,
                ratio=ratio,
                undecided=disturbed,
                fp32_ms=timings["fp32"].percentile_ms(50),
                int8_ms=timings["int8"].percentile_ms(50),
                foreign_load=max(timing.median_foreign_load for timing in timings.values()),
                attempts=len(found) + 1,
            )
        )
    best = min(found, key=lambda speed: (speed.undecided, speed.foreign_load))
    return dataclasses.replace(best, attempts=len(found))


def thread_counts(asked: Sequence[int]) -> list[int]:
    """Thread counts without repetition, 0 replaced by all usable CPUs. Raises UserError on a negative one."""
    for count in asked:
        if count < 0:
            raise UserError(f"threads is {count}; give 0 for all usable CPUs, or positive numbers")
    return list(dict.fromkeys(count or usable_cpus() for count in asked))


def summarise(speeds: Sequence[Speed]) -> dict[str, Any]:
    """The figure that the gate looks at: the worst ratio that was decided, or the worst of all if none was."""
    decided = [speed for speed in speeds if not speed.undecided]
    worst = max(decided or speeds, key=lambda speed: speed.ratio)
    return {"speed_ratio": worst.ratio, "speed_verdict": worst.verdict}
