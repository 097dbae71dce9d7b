"""Where the time of every frame went, stage by stage, and its percentiles."""

from __future__ import annotations

import time

import numpy as np

from edgemim.edge.tracking.tracker import Tracked

END_TO_END = ("decode", "crop", "infer", "post")
"""From an undecoded frame to the box."""

PERCENTILES = (50, 90, 99)
_RECENT = 30


class Stopwatch:
    """Time between calls, in milliseconds."""

    def __init__(self) -> None:
        self._last = time.perf_counter()

    def lap_ms(self) -> float:
        """Time since the last call, or since it was made."""
        now = time.perf_counter()
        passed, self._last = now - self._last, now
        return 1e3 * passed


class StageTimes:
    """Milliseconds of each stage of each frame that was tracked; the first, which gives the template, is none."""

    def __init__(self) -> None:
        self._frames: list[dict[str, float]] = []

    def add(self, decode_ms: float, tracked: Tracked, **further_ms: float) -> None:
        """Add one frame: its decoding, what the tracker measured of itself, and further stages (draw, write)."""
        own = {"crop": tracked.crop_ms, "infer": tracked.infer_ms, "post": tracked.post_ms}
        self._frames.append({"decode": decode_ms, **own, **further_ms})

    def recent_fps(self) -> float:
        """Frames a second from decoding to the box, over the newest frames; 0 before the first."""
        recent = self._frames[-_RECENT:]
        total_ms = sum(frame[stage] for frame in recent for stage in END_TO_END)
        return 1e3 * len(recent) / total_ms if total_ms > 0 else 0.0

    def summary(self) -> dict[str, dict[str, float]]:
        """{stage: {mean_ms, p50_ms, p90_ms, p99_ms}}; empty without frames.

        'end_to_end' is decode + crop + infer + post of the same frame, 'frame' the sum of all its stages.
        """
        if not self._frames:
            return {}
        stages = list(self._frames[0])
        table = np.array([[frame[stage] for stage in stages] for frame in self._frames])
        to_box = table[:, [stages.index(stage) for stage in END_TO_END]].sum(1)
        columns = {**dict(zip(stages, table.T, strict=True)), "end_to_end": to_box, "frame": table.sum(1)}
        return {name: _percentiles(times) for name, times in columns.items()}


def _percentiles(times: np.ndarray) -> dict[str, float]:
    return {"mean_ms": float(times.mean()), **{f"p{p}_ms": float(np.percentile(times, p)) for p in PERCENTILES}}
