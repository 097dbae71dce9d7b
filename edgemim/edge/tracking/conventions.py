"""How five published toolkits and a clean one look at single frames: which count, and how odd boxes are treated.

Every convention turns predictions [m, 4] and an annotated sequence into `FrameErrors`. Sources, read or run: LaSOT's
evaluation toolkit (95bf38a), PyTracking (7eb9e74), OSTrack (33b5e12), the GOT-10k toolkit (956e728), pysot-toolkit
(8b5ced3). They differ by up to two points on the same files, so a figure without its convention says little.
"""

from __future__ import annotations

import numpy as np

from edgemim.edge.tracking.boxes import centres, has_area, iou
from edgemim.edge.tracking.metrics import FrameErrors, centre_errors, inclusive_iou, pixel_centres
from edgemim.edge.tracking.sequences import Sequence as Truth
from edgemim.edge.tracking.sequences import SequenceError

_SMALL = 1e-16


def lasot(predicted: np.ndarray, truth: Truth, dataset: str = "lasot") -> FrameErrors:
    """LaSOT's evaluation toolkit (MATLAB): calc_seq_err_robust.m, eval_tracker.m.

    Predictions that are NaN or without area repeat the previous one; the first is replaced by the annotation; more than
    there are frames are cut, fewer are refused. Absent frames are taken out and still counted in the length, so that
    they always miss and a perfect tracker stays below 20/21. Frames present whose annotation has x, y, w or h <= 0 get
    -1: they miss in success and hit in both precisions. A sequence whose curve is zero throughout is left out of means.
    """
    boxes = _cut(predicted, truth)
    sound = _all_positive(boxes[:, 2:]) & ~_any_nan(boxes)
    boxes = _repeat_previous(boxes, ~sound & ~_any_nan(truth.boxes))
    boxes[0] = truth.boxes[0]
    kept = ~_flags(truth)
    boxes, real = boxes[kept], truth.boxes[kept]
    valid = _all_positive(real)
    return FrameErrors(
        overlap=np.where(valid, inclusive_iou(boxes, real), -1.0),
        centre_px=np.where(valid, centre_errors(boxes, real), -1.0),
        centre_norm=np.where(valid, centre_errors(boxes, real, real[:, 2:]), -1.0),
        valid=valid,
        length=len(truth),
    )


def pytracking(predicted: np.ndarray, truth: Truth, dataset: str = "lasot") -> FrameErrors:
    """PyTracking: analysis/extract_results.py, with `exclude_invalid_frames=False`.

    A prediction of zero width or height repeats the previous one; NaN or negative sizes are refused, and NaN in the
    annotation, except UAV123's. The first prediction is replaced by the annotation. Longer results are cut; shorter
    ones are refused on LaSOT and filled with zero boxes elsewhere, after the repair. A frame is valid whose annotation
    has x, y, w and h > 0 and, on LaSOT, no flag of absence. Invalid frames count in the length. They miss in success;
    in precision they miss (UAV123: hit, error -1); in normalised precision they hit, on LaSOT only where present.
    """
    return _pytracking(predicted, truth, dataset, _all_positive(truth.boxes))


def ostrack(predicted: np.ndarray, truth: Truth, dataset: str = "lasot") -> FrameErrors:
    """OSTrack's copy of PyTracking's analysis (lib/test/analysis), which MAE-Lite uses: a frame needs only w and h > 0, so
    that boxes at the left and top border are measured, too; all else as `pytracking`."""
    return _pytracking(predicted, truth, dataset, _all_positive(truth.boxes[:, 2:]))


def got10k(predicted: np.ndarray, truth: Truth, dataset: str = "got10k") -> FrameErrors:
    """The GOT-10k toolkit. On GOT-10k (experiments/got10k.py): the first frame is dropped, frames with a cover of 0 as well;
    of both boxes the corner is moved into the image, then the size is cut at its far border (which is not the part of
    the box inside it); figures are means over the frames of all sequences, AO over 101 thresholds' overlaps.

    On other datasets (experiments/otb.py, lasot.py): every frame without NaN in its annotation counts, flags of absence
    are ignored, the first prediction is replaced by the annotation, and errors are divided by sizes of at least 1 pixel.
    LaSOT's "normalized precision" is there the mean of its curve; `precision` figures here are read at 20 px and 0.20.
    """
    boxes = _cut(predicted, truth)
    if dataset != "got10k":
        kept = ~_any_nan(truth.boxes)
        boxes[0] = truth.boxes[0]
        boxes, real = boxes[kept], truth.boxes[kept]
        return _plain_errors(boxes, real, np.maximum(real[:, 2:], 1.0))
    kept = np.arange(len(truth)) > 0
    kept &= truth.cover > 0 if truth.cover is not None else ~truth.absent
    bound = np.array(truth.image_size(), np.float64)
    boxes, real = (_moved_inside(part[kept], bound) for part in (boxes, truth.boxes))
    return _plain_errors(boxes, real, np.maximum(real[:, 2:], 1.0))


def pysot(predicted: np.ndarray, truth: Truth, dataset: str = "lasot") -> FrameErrors:
    """pysot-toolkit: utils/statistics.py, evaluation/ope_benchmark.py.

    No repair and no replacement of the first prediction. Absent frames are taken out and still counted in the length.
    Overlap needs an annotation with x, y, w and h > 0, else -1. Centre errors need an annotated centre with both
    coordinates > 0, else -1, which hits at every threshold; normalised ones are divided by size + 1e-16.
    """
    boxes = _cut(predicted, truth)
    kept = ~_flags(truth)
    boxes, real = boxes[kept], truth.boxes[kept]
    valid = _all_positive(real)
    size = real[:, 2:] + _SMALL
    in_front = _all_positive(pixel_centres(real))
    norm_in_front = _all_positive(pixel_centres(real) / size)
    return FrameErrors(
        overlap=np.where(valid, np.clip(_ratio(boxes, real), 0, 1), -1.0),
        centre_px=np.where(in_front, centre_errors(boxes, real), -1.0),
        centre_norm=np.where(norm_in_front, centre_errors(boxes, real, size), -1.0),
        valid=valid,
        length=len(truth),
    )


def clean(predicted: np.ndarray, truth: Truth, dataset: str = "") -> FrameErrors:
    """Ours, without the quirks: a frame counts if the target is present in it, by flag and by an annotated box with an
    area, and it is not the first, which is given. Boxes are continuous. A prediction that is missing, NaN or without
    area misses in all three figures. AUC is the exact area under the success curve, the mean overlap: 100 at best.
    """
    kept = truth.usable & (np.arange(len(truth)) > 0)
    boxes = np.full((len(truth), 4), np.nan)
    given = predicted[: len(truth)]
    boxes[: len(given)] = given
    boxes, real = boxes[kept], truth.boxes[kept]
    there = has_area(boxes)
    with np.errstate(invalid="ignore"):
        away = centres(boxes) - centres(real)
    return FrameErrors(
        overlap=iou(boxes, real),
        centre_px=np.where(there, np.linalg.norm(away, axis=1), np.inf),
        centre_norm=np.where(there, np.linalg.norm(away / real[:, 2:], axis=1), np.inf),
        valid=np.ones(len(real), bool),
        length=len(real),
    )


def _pytracking(predicted: np.ndarray, truth: Truth, dataset: str, annotated: np.ndarray) -> FrameErrors:
    no_truth = _any_nan(truth.boxes)
    if np.isnan(predicted).any() or (predicted[:, 2:] < 0).any():
        raise SequenceError(
            f"sequence {truth.name}: a predicted box is NaN or has a negative size, which PyTracking and OSTrack refuse; "
            "score with --protocol lasot or clean, or mend the results"
        )
    if no_truth.any() and dataset != "uav123":
        raise SequenceError(
            f"sequence {truth.name}: NaN in the annotation, which PyTracking and OSTrack take on uav123 alone; "
            "score with --protocol clean"
        )
    fills = dataset != "lasot"
    zero = np.asarray((predicted[: len(truth), 2:] == 0).any(1))
    alone = no_truth[: len(zero)]
    boxes = _repeat_previous(_cut(predicted, truth, shorter=fills), zero & ~alone)
    if fills:
        boxes = np.concatenate([boxes, np.zeros((len(truth) - len(boxes), 4))])
    boxes[0], real = truth.boxes[0], truth.boxes
    present = ~_flags(truth) if dataset == "lasot" else np.ones(len(truth), bool)
    valid = annotated & present
    off = -1.0 if dataset == "uav123" else np.inf
    return FrameErrors(
        overlap=np.where(valid, inclusive_iou(boxes, real), -1.0),
        centre_px=np.where(valid, centre_errors(boxes, real), off),
        centre_norm=np.where(valid, centre_errors(boxes, real, real[:, 2:]), np.where(present, -1.0, np.inf)),
        valid=valid,
        length=len(truth),
    )


def _cut(predicted: np.ndarray, truth: Truth, *, shorter: bool = False) -> np.ndarray:
    """A copy without what goes beyond the annotation. Raises SequenceError if there is less, unless that is allowed."""
    if len(predicted) < len(truth) and not shorter:
        raise SequenceError(
            f"sequence {truth.name}: {len(predicted)} predicted boxes for {len(truth)} annotated frames: results half "
            "written? finish the run, or leave the sequence out with --skip-missing"
        )
    return predicted[: len(truth)].astype(np.float64)


def _repeat_previous(boxes: np.ndarray, broken: np.ndarray) -> np.ndarray:
    """Broken rows become the last one before them that is not; the first row stays as it is."""
    rows = np.arange(len(boxes))
    sound = ~broken[: len(boxes)]
    sound[:1] = True
    return boxes[np.maximum.accumulate(np.where(sound, rows, 0))]


def _all_positive(rows: np.ndarray) -> np.ndarray:
    """[n, k] -> bool [n]; NaN is not positive."""
    return np.asarray((rows > 0).all(1))


def _any_nan(rows: np.ndarray) -> np.ndarray:
    """[n, k] -> bool [n]."""
    return np.asarray(np.isnan(rows).any(1))


def _flags(truth: Truth) -> np.ndarray:
    """Absence as the dataset flags it: a missing box alone is none."""
    return truth.absent if truth.flagged else np.zeros(len(truth), bool)


def _ratio(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Plain intersection over union without any guard."""
    shared, union = _areas(first, second)
    with np.errstate(divide="ignore", invalid="ignore"):
        return shared / union


def _shared_over_union(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """The GOT-10k toolkit's rect_iou: the union has the smallest step of float64 added."""
    shared, union = _areas(first, second)
    return np.clip(shared / (union + np.finfo(float).eps), 0, 1)


def _areas(first: np.ndarray, second: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low = np.maximum(first[:, :2], second[:, :2])
    high = np.minimum(first[:, :2] + first[:, 2:], second[:, :2] + second[:, 2:])
    shared = np.prod(np.clip(high - low, 0, None), axis=1)
    return shared, np.prod(first[:, 2:], axis=1) + np.prod(second[:, 2:], axis=1) - shared


def _plain_errors(boxes: np.ndarray, real: np.ndarray, per: np.ndarray) -> FrameErrors:
    return FrameErrors(
        overlap=_shared_over_union(boxes, real),
        centre_px=centre_errors(boxes, real),
        centre_norm=centre_errors(boxes, real, per),
        valid=np.ones(len(real), bool),
        length=len(real),
    )


def _moved_inside(boxes: np.ndarray, bound: np.ndarray) -> np.ndarray:
    low = np.clip(boxes[:, :2], 0, bound)
    return np.concatenate([low, np.clip(boxes[:, 2:], 0, bound - low)], axis=1)
