"""Arithmetic of tracking metrics: overlaps, centre errors, and curves over thresholds; what a toolkit does with odd
frames is in `protocols`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

SUCCESS_THRESHOLDS = np.arange(21) * 0.05
"""Overlaps that a frame must exceed to count as a success."""
PRECISION_THRESHOLDS_PX = np.arange(51.0)
"""Centre errors in pixels that a frame may have to count as precise."""
NORM_THRESHOLDS = np.arange(51) / 100
"""The same in widths and heights of the true box."""
PRECISION_PX, NORM_PRECISION = 20, 0.20
"""The thresholds that tables show."""
_AT = 20
"""Index of both in their thresholds."""


@dataclass(frozen=True)
class FrameErrors:
    """Figures of the frames that a protocol looks at, float64 [m], and the number that shares are taken of.

    A protocol marks frames that it does not measure: overlap -1 never exceeds a threshold, an infinite error is never
    precise, an error of -1 always is.
    """

    overlap: np.ndarray
    centre_px: np.ndarray
    centre_norm: np.ndarray
    valid: np.ndarray
    """bool [m]: measured."""
    length: int


@dataclass(frozen=True)
class Curves:
    """Shares (0 to 1) of a sequence's frames, or means of them over sequences, at each threshold."""

    success: np.ndarray
    precision: np.ndarray
    norm_precision: np.ndarray
    average_overlap: float
    """Mean overlap of the measured frames: the exact area under their success curve."""


@dataclass(frozen=True)
class Scores:
    """Percentages of one sequence or of a whole dataset, and the curves behind them."""

    curves: Curves
    values: Mapping[str, float]
    """auc, op50, op75, precision, norm_precision; of GOT-10k ao, sr50, sr75."""
    overlap: np.ndarray
    """Overlaps of the frames that the protocol looked at; empty for a dataset."""


def inclusive_iou(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Overlap of boxes whose right edge is left + width - 1, a pixel that counts: [n, 4], [n, 4] -> [n].

    Equal to the usual one but for rounding, which the strict comparison with 1.0 would show (calc_rect_int of the OTB and
    LaSOT toolkits, calc_iou_overlap of PyTracking). Division by a union of zero gives NaN, as there.
    """
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, :2] + first[:, 2:] - 1.0, second[:, :2] + second[:, 2:] - 1.0)
    shared = np.prod(np.clip(high - low + 1.0, 0, None), axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        return shared / (np.prod(first[:, 2:], axis=1) + np.prod(second[:, 2:], axis=1) - shared)


def pixel_centres(boxes: np.ndarray) -> np.ndarray:
    """Middle pixels, left + (width - 1) / 2, as every toolkit takes them: [n, 4] -> [n, 2]."""
    return boxes[:, :2] + 0.5 * (boxes[:, 2:] - 1.0)


def centre_errors(predicted: np.ndarray, truth: np.ndarray, per: np.ndarray | float = 1.0) -> np.ndarray:
    """Distances of middle pixels, each axis divided by `per` ([n, 2] or one number): [n, 4], [n, 4] -> [n]."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.linalg.norm(pixel_centres(predicted) / per - pixel_centres(truth) / per, axis=1)


def curves(errors: FrameErrors, success_thresholds: np.ndarray = SUCCESS_THRESHOLDS) -> Curves:
    """Shares of `errors.length` frames: overlap strictly above, errors up to each threshold. A length of 0 gives NaN."""
    length = errors.length or np.nan
    return Curves(
        success=(errors.overlap[:, None] > success_thresholds).sum(0) / length,
        precision=(errors.centre_px[:, None] <= PRECISION_THRESHOLDS_PX).sum(0) / length,
        norm_precision=(errors.centre_norm[:, None] <= NORM_THRESHOLDS).sum(0) / length,
        average_overlap=float(errors.overlap[errors.valid].mean()) if errors.valid.any() else np.nan,
    )


def mean_curves(parts: list[Curves]) -> Curves:
    """Every sequence counts alike; one without a measured frame (NaN) is passed over."""

    def mean(rows: list[np.ndarray]) -> np.ndarray:
        table = np.stack(rows)
        known = ~np.isnan(table).any(-1)
        return table[known].mean(0) if known.any() else table[0]

    return Curves(
        mean([part.success for part in parts]),
        mean([part.precision for part in parts]),
        mean([part.norm_precision for part in parts]),
        float(mean([np.array([part.average_overlap]) for part in parts])[0]),
    )


def percentages(curve: Curves) -> dict[str, float]:
    """The figures of a success, a precision and a normalised precision plot, in percent."""
    shares = {
        "auc": curve.success.mean(),
        "op50": curve.success[10],
        "op75": curve.success[15],
        "precision": curve.precision[_AT],
        "norm_precision": curve.norm_precision[_AT],
    }
    return {name: 100 * float(value) for name, value in shares.items()}
