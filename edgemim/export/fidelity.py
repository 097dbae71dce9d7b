"""What a quantised model lost and won against its FP32 original, on the same runtime."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgemim.edge.benchmark import MIN_BLOCKS, measure, paired_ratio
from edgemim.edge.machine import usable_cpus
from edgemim.edge.runtime import Session
from edgemim.errors import UserError
from edgemim.export.parity import cosines, run_batched


@dataclass(frozen=True)
class Fidelity:
    """How alike the answers of two models are.

    Attributes:
        images: number of images both saw.
        labelled: how many of them have a known class.
        accuracy_fp32: top-1 of the original on the labelled images, percent; None without labels.
        accuracy: the same of the quantised model.
        agreement: images where both name the same class, percent.
        cosine: mean over the images of the cosine of both logits.
        cosine_worst: the smallest of them.
    """

    images: int
    labelled: int
    accuracy_fp32: float | None
    accuracy: float | None
    agreement: float
    cosine: float
    cosine_worst: float

    @property
    def drop_points(self) -> float | None:
        """Loss of accuracy in percentage points; negative is a gain; None without labels."""
        if self.accuracy is None or self.accuracy_fp32 is None:
            return None
        return self.accuracy_fp32 - self.accuracy


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


def compare_models(
    fp32: Session,
    int8: Session,
    batches: Iterable[tuple[np.ndarray, np.ndarray]],
    *,
    input_name: str = "images",
    output_name: str = "logits",
    fixed: int | None = None,
) -> Fidelity:
    """Run both models over batches of (images, labels), a label of -1 being unknown. Raises UserError without images."""
    rows: list[np.ndarray] = []
    for images, labels in batches:
        a, b = (run_batched(session, input_name, images, fixed)[output_name] for session in (fp32, int8))
        first, second = a.argmax(axis=1), b.argmax(axis=1)
        columns = (labels >= 0, first == labels, second == labels, first == second, cosines(a, b))
        rows.append(np.stack([column.astype(np.float64) for column in columns], axis=1))
    if not rows:
        raise UserError("there are no held-out images to judge INT8 on; give --data DIR with images")
    known, right_fp32, right_int8, same, cosine = np.concatenate(rows).T
    labelled = int(known.sum())
    return Fidelity(
        images=len(known),
        labelled=labelled,
        accuracy_fp32=float(100 * right_fp32.sum() / labelled) if labelled else None,
        accuracy=float(100 * right_int8.sum() / labelled) if labelled else None,
        agreement=float(100 * same.mean()),
        cosine=float(cosine.mean()),
        cosine_worst=float(cosine.min()),
    )


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
