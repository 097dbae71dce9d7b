"""The learning rate as a pure function of the step: linear warm-up, then a half cosine."""

from __future__ import annotations

import math


def warmup_cosine(step: int, *, total_steps: int, warmup_steps: int, peak: float, final: float) -> float:
    """Learning rate of a 0-based step: 0 at step 0, `peak` at `warmup_steps`, towards `final` at `total_steps`.

    Per-iteration, as in MAE's published code (`lr_sched.adjust_learning_rate`).
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    span = max(total_steps - warmup_steps, 1)
    return final + (peak - final) * 0.5 * (1 + math.cos(math.pi * (step - warmup_steps) / span))
