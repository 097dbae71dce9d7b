"""The learning rate as a pure function of the step: linear warm-up, then a half cosine or a falling power."""

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


def warmup_poly(
    step: int, *, total_steps: int, warmup_steps: int, peak: float, final: float, power: float = 1.0
) -> float:
    """Learning rate of a 0-based step: as `warmup_cosine`, but falling with (1 - share of the steps done) ** power.

    The schedule of semantic segmentation since DeepLab (arXiv 1606.00915, section 4.1); power 1 is a straight line.
    """
    if step < warmup_steps:
        return peak * step / warmup_steps
    span = max(total_steps - warmup_steps, 1)
    return final + (peak - final) * (1 - (step - warmup_steps) / span) ** power
