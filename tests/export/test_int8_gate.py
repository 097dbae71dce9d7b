"""What the gate holds against an INT8 file, and the figures it is told."""

from __future__ import annotations

import numpy as np
import pytest

from edgemim.export.fidelity import Speed
from edgemim.export.int8_gate import calibration_faults, objections
from edgemim.tasks.comparison import Comparison, Limits


def good(**changes: float | None) -> Comparison:
    values = {"metric": "top-1", "images": 500, "labelled": 500, "score_fp32": 80.0, "score_int8": 79.0}
    more = {"answers": "images", "agreement": 99.0, "cosine": 0.999, "cosine_worst": 0.9}
    return Comparison(**{**values, **more, **changes})  # pyright: ignore[reportArgumentType]


def speed(ratio: float, undecided: bool = False) -> Speed:
    return Speed(1, ratio, undecided, 2.0, 2.0 * ratio, 0.0, 1)


@pytest.mark.parametrize(
    ("found", "ratio", "undecided", "words"),
    [
        (good(), 0.99, False, []),
        (good(score_int8=78.9), 0.5, False, ["top-1 drop of 1.10 points"]),
        (good(score_int8=81.0), 0.5, False, []),
        (good(score_int8=None, score_fp32=None, labelled=0), 0.5, False, []),
        (good(agreement=98.9), 0.5, False, ["agreement of 98.90 % of the images"]),
        (good(cosine=0.9989), 0.5, False, ["cosine of 0.99890"]),
        (good(cosine=float("nan")), 0.5, False, ["cosine of nan"]),
        (good(), 1.0, False, ["slower: 1.00"]),
        (good(), 1.5, True, []),
        (good(agreement=50, cosine=0.1, score_int8=10), 2.0, False, ["drop", "agreement", "cosine", "slower"]),
    ],
)
def test_objections(found: Comparison, ratio: float, undecided: bool, words: list[str]) -> None:
    reasons = list(objections(found, [speed(0.5), speed(ratio, undecided)], Limits(max_drop=1.0)))
    assert len(reasons) == len(words)
    for word, reason in zip(words, reasons, strict=True):
        assert word in reason


def test_a_calibration_set_of_another_kind_is_a_fault(task) -> None:
    def inputs(images: np.ndarray) -> list[dict[str, np.ndarray]]:
        return [{"images": image[None]} for image in images]

    held_out = inputs(np.concatenate([images for images, _ in task.evaluation_batches(32)]))
    training = np.concatenate(list(task.calibration_batches(32)))
    assert calibration_faults(inputs(training), held_out) == []
    [black] = calibration_faults(inputs(0 * training - 1.6), held_out)
    assert black == "calibration images with 0.00 times the contrast of held-out ones (1/3 to 3)"
    [raw] = calibration_faults(inputs(255 * training), held_out)  # pixels that were not divided by 255
    assert "times the contrast" in raw
    assert calibration_faults(inputs(np.nan * training), held_out)
