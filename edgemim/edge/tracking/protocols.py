"""Protocols of tracking benchmarks: a convention for frames, and what is made of them for a sequence and a dataset."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from edgemim.edge.tracking import conventions
from edgemim.edge.tracking.metrics import Curves, FrameErrors, Scores, curves, mean_curves, percentages
from edgemim.edge.tracking.sequences import Sequence as Truth

_GOT10K_THRESHOLDS = np.linspace(0, 1, 101)
_CURVES = ("success", "precision", "norm_precision")


@dataclass(frozen=True)
class Protocol:
    """A toolkit's conventions: errors of frames, and what is made of them."""

    name: str
    errors: Callable[[np.ndarray, Truth, str], FrameErrors]
    exact_auc: bool = False
    """AUC is the mean overlap in place of the mean of 21 points."""
    drops_zero_curves: bool = False
    """A sequence whose curve is zero throughout is left out of the mean."""

    def score(self, predicted: np.ndarray, truth: Truth, dataset: str, *, exclude_invalid: bool = False) -> Scores:
        """One sequence. With `exclude_invalid`, shares are taken of the measured frames (PyTracking's option)."""
        errors = self.errors(predicted, truth, dataset)
        if exclude_invalid:
            errors = replace(errors, length=int(errors.valid.sum()))
        if self.pools(dataset):
            return _ao_and_sr(errors)
        return Scores(curve := curves(errors), self._values(curve), errors.overlap)

    def overall(self, parts: Sequence[Scores], dataset: str) -> Scores:
        """A dataset from its sequences, each counting alike; GOT-10k's from all of its frames."""
        nothing = np.zeros(0)
        if self.pools(dataset):
            overlap = np.concatenate([part.overlap for part in parts])
            return replace(_ao_and_sr(_overlaps_alone(overlap)), overlap=nothing)
        found = [part.curves for part in parts]
        curve = mean_curves(found)
        if self.drops_zero_curves:
            curve = replace(curve, **{name: _mean_of_nonzero(found, name) for name in _CURVES})
        return Scores(curve, self._values(curve), nothing)

    def pools(self, dataset: str) -> bool:
        """Whether figures are means over all frames of a dataset and not over its sequences."""
        return self.name == "got10k" and dataset == "got10k"

    def _values(self, curve: Curves) -> dict[str, float]:
        values = percentages(curve)
        if self.exact_auc:
            values["auc"] = 100 * curve.average_overlap
        if self.name == "got10k":
            values["norm_precision_mean"] = 100 * float(curve.norm_precision.mean())
        return values


PROTOCOLS: Mapping[str, Protocol] = {
    "lasot": Protocol("lasot", conventions.lasot, drops_zero_curves=True),
    "pytracking": Protocol("pytracking", conventions.pytracking),
    "ostrack": Protocol("ostrack", conventions.ostrack),
    "got10k": Protocol("got10k", conventions.got10k),
    "pysot": Protocol("pysot", conventions.pysot),
    "clean": Protocol("clean", conventions.clean, exact_auc=True),
}


def _ao_and_sr(errors: FrameErrors) -> Scores:
    overlap, curve = errors.overlap, curves(errors, _GOT10K_THRESHOLDS)
    frames = len(overlap) or math.nan
    sums = {"ao": overlap.sum(), "sr50": (overlap > 0.5).sum(), "sr75": (overlap > 0.75).sum()}
    return Scores(curve, {name: 100 * float(value / frames) for name, value in sums.items()}, overlap)


def _overlaps_alone(overlap: np.ndarray) -> FrameErrors:
    unknown = np.full(len(overlap), np.nan)
    return FrameErrors(overlap, unknown, unknown, np.ones(len(overlap), bool), len(overlap))


def _mean_of_nonzero(parts: Sequence[Curves], name: str) -> np.ndarray:
    rows = np.stack([getattr(part, name) for part in parts])
    kept = rows.sum(1) > np.finfo(float).eps
    return rows[kept].mean(0) if kept.any() else rows.mean(0)
