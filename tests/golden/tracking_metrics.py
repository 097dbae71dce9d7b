"""Golden cases of tracking metrics: PyTracking's, OSTrack's, the GOT-10k toolkit's and pysot's on the same boxes, and those
of LaSOT's evaluation toolkit."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from edgemim.edge.tracking import metrics
from edgemim.edge.tracking.metrics import FrameErrors, Scores
from edgemim.edge.tracking.protocols import PROTOCOLS
from edgemim.edge.tracking.sequences import Sequence as Truth
from edgemim.edge.tracking.sequences import SequenceError
from tests.golden.case import Case, Comparison, Line

_FRAMES: Mapping[str, Callable[[FrameErrors], np.ndarray]] = {
    "overlap": lambda errors: errors.overlap,
    "center": lambda errors: errors.centre_px,
    "center_norm": lambda errors: errors.centre_norm,
    "valid": lambda errors: errors.valid,
}
_CURVES = ("success", "precision", "norm_precision")
_SCORES = {
    "AUC": "auc",
    "OP50": "op50",
    "OP75": "op75",
    "Precision@20px": "precision",
    "NormPrecision@0.20": "norm_precision",
}
_PLAIN = {
    "success": "auc",
    "success_score": "auc",
    "precision@20": "precision",
    "norm_precision@0.20": "norm_precision",
}
_GOT10K = {"AO": "ao", "SR50": "sr50", "SR75": "sr75"}
# Sequences of other datasets carry the dataset in their names.
_DATASETS = {"otb": "otb", "uav": "uav123"}


def compare(case: Case) -> Comparison:
    """Per-frame figures, curves and scores of four toolkits."""
    result = Comparison(case)
    thresholds = (metrics.SUCCESS_THRESHOLDS, metrics.PRECISION_THRESHOLDS_PX, metrics.NORM_THRESHOLDS)
    for name, values in zip(("overlap", "center", "center_norm"), thresholds, strict=True):
        result.output(f"threshold_set_{name}", _tensor(values))
    for name in case.outputs:
        found = re.fullmatch(r"(pytracking|ostrack)\.(novis\.)?(.+)\.(overlap|center|center_norm|valid)", name)
        if found:
            tool, hidden, sequence, what = found.groups()
            dataset = "otb" if hidden else _DATASETS.get(sequence.partition("_")[0], "lasot")
            errors = PROTOCOLS[tool].errors(*_pair(case, sequence, flags=not hidden), dataset)
            result.output(name, _tensor(_FRAMES[what](errors)))
    for tool in ("pytracking", "ostrack"):
        for mode in ("default", "excl_invalid"):
            _compare_extraction(result, tool, mode)
    _compare_got10k(result)
    for prefix, protocol in (("got10k_lasot", "got10k"), ("pysot", "pysot")):
        parts, overall = _scores(case, protocol, "lasot")
        _curves(result, prefix, parts)
        _numbers(result, prefix, overall, case.facts["scalars"]["summary"][prefix], _PLAIN, 0.01)
    _compare_refusals(result)
    return result.finish()


def compare_lasot_official(case: Case) -> Comparison:
    """LaSOT's toolkit: figures of present frames, curves, scores."""
    result = Comparison(case)
    parts, overall = _scores(case, "lasot", "lasot")
    for name in case.config["sequence_order"]:
        errors = PROTOCOLS["lasot"].errors(*_pair(case, name), "lasot")
        for what in ("overlap", "center", "center_norm"):
            result.output(f"{name}.{what}", _tensor(_FRAMES[what](errors)))
    _curves(result, "", parts)
    for kind in _CURVES:
        result.output(f"{kind}_curve", _tensor(getattr(overall.curves, kind)))
    stated = case.facts["scalars"]["scores"]
    scores = {kind: next(iter(stated[kind].values())) for kind in _CURVES}
    _numbers(
        result,
        "scores",
        overall,
        scores,
        {**_PLAIN, "precision": "precision", "norm_precision": "norm_precision"},
        0.01,
    )
    return result.finish()


def _compare_extraction(result: Comparison, tool: str, mode: str) -> None:
    parts, overall = _scores(result.case, tool, "lasot", exclude_invalid=mode != "default")
    prefix = f"{tool}.{mode}"
    _curves(result, prefix, parts)
    averages = [part.curves.average_overlap for part in parts]
    result.output(f"{prefix}.avg_overlap_per_seq", _tensor(np.array(averages)))
    for kind in _CURVES:
        result.output(f"{prefix}.{kind}_curve", _tensor(100 * getattr(overall.curves, kind)))
    _numbers(result, prefix, overall, result.case.facts["scalars"]["summary"][prefix], _SCORES, 1.0)


def _compare_got10k(result: Comparison) -> None:
    case, stated = result.case, result.case.facts["scalars"]["summary"]
    parts, overall = _scores(case, "got10k", "got10k")
    for name, part in zip(case.config["sequence_order"], parts, strict=True):
        result.output(f"got10k.{name}.iou", _tensor(part.overlap))
        _numbers(result, f"got10k.{name}", part, stated["got10k.per_seq"][name], _GOT10K, 0.01)
    result.output("got10k.succ_curve", _tensor(overall.curves.success))
    # One name goes on with words about the rule.
    scores = {name.split(" ")[0]: value for name, value in stated["got10k.overall"].items()}
    _numbers(result, "got10k.overall", overall, scores, _GOT10K, 0.01)


def _compare_refusals(result: Comparison) -> None:
    """What PyTracking raises at, we refuse."""
    name = result.case.config["sequence_order"][0]
    boxes, truth = _pair(result.case, name)
    rows = {"nan_prediction": np.nan, "negative_size_prediction": -1.0}
    broken = {key: np.concatenate([boxes[:-1], np.full((1, 4), value)]) for key, value in rows.items()}
    unknown = truth.boxes.copy()
    unknown[-1] = np.nan
    cases = {key: (value, truth) for key, value in broken.items()}
    cases["nan_ground_truth_lasot"] = boxes, Truth(name, (), unknown, truth.absent, truth.flagged)
    cases["prediction_too_short_lasot"] = boxes[:-1], truth
    for key in result.case.facts["scalars"].get("expected_exceptions", ()):
        if key not in cases:
            result.lines.append(Line(key, float("inf"), float("inf"), "an exception that no runner provokes"))
            continue
        try:
            PROTOCOLS["pytracking"].errors(*cases[key], "lasot")
            result.lines.append(Line(key, float("inf"), float("inf"), "not refused"))
        except SequenceError:
            result.lines.append(Line(key, 0.0, 0.0, "refused, as expected"))


def _scores(case: Case, protocol: str, dataset: str, exclude_invalid: bool = False) -> tuple[list[Scores], Scores]:
    rules = PROTOCOLS[protocol]
    names = case.config["sequence_order"]
    parts = [rules.score(*_pair(case, name), dataset, exclude_invalid=exclude_invalid) for name in names]
    return parts, rules.overall(parts, dataset)


def _pair(case: Case, name: str, *, flags: bool = True) -> tuple[np.ndarray, Truth]:
    """Predictions and annotation of one sequence."""
    boxes, visible = case.inputs[f"{name}.gt"].numpy(), case.inputs.get(f"{name}.visible")
    absent = case.inputs.get(f"{name}.absent")
    hidden = visible == 0 if visible is not None else absent == 1 if absent is not None else None
    flagged = flags and hidden is not None
    missing = hidden.numpy() if flagged and hidden is not None else np.isnan(boxes).any(1)
    cover = None if visible is None else 8 * visible.numpy()
    size = tuple(case.config.get("image_size_wh", ())) or None
    return case.inputs[f"{name}.pred"].numpy(), Truth(name, (), boxes, missing, flagged, cover, size)


def _curves(result: Comparison, prefix: str, parts: Sequence[Scores]) -> None:
    for kind in _CURVES:
        rows = np.stack([getattr(part.curves, kind) for part in parts])
        result.output(f"{prefix}.{kind}_curve_per_seq".lstrip("."), _tensor(rows))


def _numbers(
    result: Comparison, label: str, ours: Scores, stated: Mapping[str, float], names: Mapping[str, str], factor: float
) -> None:
    """Scores under the toolkit's names; ours are percentages, theirs these times `factor`."""
    found = {name: factor * ours.values[names[name]] for name in stated if name in names}
    result.numbers(f"{label} scores", found, stated, floor=result.atol)


def _tensor(values: np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(values, np.float64))
