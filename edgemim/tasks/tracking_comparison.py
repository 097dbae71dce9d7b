"""How alike two trackers answer on the same pairs: their boxes, and how these lie on the target."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from edgemim.edge.runtime import Session
from edgemim.edge.tracking.decode import decode_maps
from edgemim.errors import UserError
from edgemim.tasks.comparison import Comparison, cosines
from edgemim.tasks.tracking_pairs import Pair

SAME_OVERLAP = 0.8
"""Two boxes that overlap by so much are counted as the same answer."""


def compare_boxes(fp32: Session, int8: Session, pairs: Iterable[tuple[dict[str, np.ndarray], Pair]]) -> Comparison:
    """Mean overlap of two trackers' boxes, each at its largest score (no window), with the true ones.

    The cosine is that of the score maps. Raises UserError without pairs.
    """
    rows: list[tuple[float, float, float, float]] = []
    for inputs, pair in pairs:
        first, second = fp32.run(inputs), int8.run(inputs)
        boxes = [found_box(maps) for maps in (first, second)]
        rows.append(
            (
                overlap(boxes[0], pair.search_box),
                overlap(boxes[1], pair.search_box),
                float(overlap(boxes[0], boxes[1]) >= SAME_OVERLAP),
                float(cosines(first["score"], second["score"])[0]),
            )
        )
    if not rows:
        raise UserError("there are no held-out pairs to judge on; give --data DIR with pictures")
    original, quantised, same, cosine = np.array(rows).T
    return Comparison(
        metric="mean IoU",
        images=len(rows),
        labelled=len(rows),
        score_fp32=float(100 * original.mean()),
        score_int8=float(100 * quantised.mean()),
        answers="boxes",
        agreement=float(100 * same.mean()),
        cosine=float(cosine.mean()),
        cosine_worst=float(cosine.min()),
    )


def found_box(maps: dict[str, np.ndarray]) -> np.ndarray:
    """float64 [4]: left, top, width, height over the region's side; NaN where the maps are not finite."""
    x, y, width, height, _ = decode_maps(maps["score"], maps["size"], maps["offset"], None)
    return np.array([x - width / 2, y - height / 2, width, height])


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    """Intersection over union of two boxes (left, top, width, height); 0 where one is not finite."""
    first, second = (np.concatenate([box[:2], box[:2] + box[2:]]).astype(np.float64) for box in (a, b))
    if not (np.isfinite(first).all() and np.isfinite(second).all()):
        return 0.0
    inner = np.prod(np.clip(np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2]), 0, None))
    union = np.prod(a[2:].astype(np.float64)) + np.prod(b[2:].astype(np.float64)) - inner
    return float(inner / union) if union > 0 else 0.0
