"""Every toolkit's treatment of odd frames against a slow version: one frame at a time, plain numbers, written apart."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from edgemim.edge.tracking import conventions
from edgemim.edge.tracking.sequences import Sequence, SequenceError

NAN = math.nan
Row = list[float]


def overlap(a: Row, b: Row) -> float:
    """Shared area over joint area."""
    wide = max(0.0, min(a[0] + a[2], b[0] + b[2]) - max(a[0], b[0]))
    high = max(0.0, min(a[1] + a[3], b[1] + b[3]) - max(a[1], b[1]))
    return wide * high / (a[2] * a[3] + b[2] * b[3] - wide * high)


def distance(a: Row, b: Row, per: tuple[float, float] = (1.0, 1.0)) -> float:
    """Between middle pixels."""
    middle = [[box[0] + (box[2] - 1) / 2, box[1] + (box[3] - 1) / 2] for box in (a, b)]
    return math.hypot((middle[0][0] - middle[1][0]) / per[0], (middle[0][1] - middle[1][1]) / per[1])


def odd_sequence(seed: int, frames: int = 40) -> tuple[list[Row], list[Row], list[bool]]:
    """Predictions, annotation and flags of absence with every oddity that toolkits treat."""
    generator = np.random.default_rng(seed)
    real = (np.array([30.0, 40, 25, 18]) + generator.normal(0, 3, (frames, 4))).round(2)
    found = (real + generator.normal(0, 4, (frames, 4))).round(2)
    found[:, 2:] = np.abs(found[:, 2:]) + 1
    absent = generator.random(frames) < 0.2
    absent[0] = False
    real[absent & (generator.random(frames) < 0.5)] = 0  # some hidden targets have a box, others none
    border = generator.integers(1, frames, 3)
    real[border, 0] = [-2.0, 0.0, -2.0]
    for row in generator.integers(1, frames, 4):
        found[row, 2:] = 0
    found[frames // 2] = [0, 0, 0, 0]
    found[frames // 2 + 1] = [5, 5, 0, 9]
    return found.tolist(), real.tolist(), absent.tolist()


def truth(real: list[Row], absent: list[bool] | None = None) -> Sequence:
    """A sequence; flagged where flags are given."""
    boxes = np.array(real)
    flags = np.array(absent) if absent is not None else np.isnan(boxes).any(1)
    return Sequence("s", (), boxes, flags, absent is not None, size_px=(50, 60))


def slow_pytracking(
    found: list[Row], real: list[Row], absent: list[bool] | None, dataset: str, needed: tuple[int, ...]
) -> list[tuple[float, float, float, bool]]:
    """(overlap, centre, normalised centre, valid) of every frame; `needed` numbers of the annotation are positive."""
    rows = [list(row) for row in found]
    for i in range(1, len(rows)):
        if (rows[i][2] == 0 or rows[i][3] == 0) and not any(map(math.isnan, real[i])):
            rows[i] = rows[i - 1]
    rows = rows[: len(real)] + [[0.0] * 4 for _ in range(len(real) - len(rows))]
    rows[0] = real[0]
    result = []
    for i, (box, there) in enumerate(zip(rows, real, strict=True)):
        hidden = absent[i] if absent is not None else False
        if not hidden and all(there[k] > 0 for k in needed):
            sizes = there[2], there[3]
            result.append((overlap(box, there), distance(box, there), distance(box, there, sizes), True))
        elif hidden:
            result.append((-1.0, math.inf, math.inf, False))
        else:
            result.append((-1.0, -1.0 if dataset == "uav123" else math.inf, -1.0, False))
    return result


def check(ours: conventions.FrameErrors, slow: list[tuple[float, float, float, bool]]) -> None:
    """All four columns agree."""
    columns = (ours.overlap, ours.centre_px, ours.centre_norm, ours.valid)
    for mine, theirs in zip(columns, zip(*slow, strict=True), strict=True):
        np.testing.assert_allclose(mine.astype(float), np.array(theirs, float), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("tool", "needed"), [("pytracking", (0, 1, 2, 3)), ("ostrack", (2, 3))])
def test_pytracking_and_its_copy(tool: str, needed: tuple[int, ...], seed: int) -> None:
    found, real, absent = odd_sequence(seed)
    convention = getattr(conventions, tool)
    check(convention(np.array(found), truth(real, absent)), slow_pytracking(found, real, absent, "lasot", needed))
    # Other datasets have no flags; a result that is too short is filled, one too long cut.
    for rows in (found, found[:33], [*found, [9.0] * 4]):
        check(convention(np.array(rows), truth(real), "otb"), slow_pytracking(rows, real, None, "otb", needed))
    real[7] = real[20] = [NAN] * 4
    check(convention(np.array(found), truth(real), "uav123"), slow_pytracking(found, real, None, "uav123", needed))


def test_what_pytracking_refuses() -> None:
    found, real, absent = odd_sequence(0)
    for value in (NAN, -3.0):
        broken = np.array(found)
        broken[9, 2] = value
        with pytest.raises(SequenceError, match="score with --protocol lasot or clean"):
            conventions.pytracking(broken, truth(real, absent))
    with pytest.raises(SequenceError, match="39 predicted boxes for 40 annotated frames: results half written"):
        conventions.pytracking(np.array(found[:-1]), truth(real, absent))
    real[3] = [NAN] * 4
    with pytest.raises(SequenceError, match="NaN in the annotation"):
        conventions.pytracking(np.array(found), truth(real, absent), "lasot")


@pytest.mark.parametrize("seed", range(4))
def test_lasots_own_toolkit(seed: int) -> None:
    found, real, absent = odd_sequence(seed)
    found[11], found[12] = [NAN] * 4, [5.0, 5, -3, 4]
    rows = [list(row) for row in found]
    for i in range(1, len(rows)):
        if any(map(math.isnan, rows[i])) or rows[i][2] <= 0 or rows[i][3] <= 0:
            rows[i] = rows[i - 1]
    rows[0] = real[0]
    slow = []
    for box, there, hidden in zip(rows, real, absent, strict=True):
        if hidden:
            continue
        if min(there) > 0:
            slow.append((overlap(box, there), distance(box, there), distance(box, there, (there[2], there[3])), True))
        else:
            slow.append((-1.0, -1.0, -1.0, False))
    ours = conventions.lasot(np.array([*found, found[0]]), truth(real, absent))
    check(ours, slow)
    assert ours.length == len(real) > len(slow)


@pytest.mark.parametrize("seed", range(4))
def test_pysot(seed: int) -> None:
    found, real, absent = odd_sequence(seed)
    slow = []
    for box, there, hidden in zip(found, real, absent, strict=True):
        if hidden:
            continue
        sizes = there[2] + 1e-16, there[3] + 1e-16
        middle = there[0] + (there[2] - 1) / 2, there[1] + (there[3] - 1) / 2
        valid = min(there) > 0
        slow.append(
            (
                overlap(box, there) if valid else -1.0,
                distance(box, there) if min(middle) > 0 else -1.0,
                distance(box, there, sizes) if min(middle) > 0 else -1.0,
                valid,
            )
        )
    check(conventions.pysot(np.array(found), truth(real, absent)), slow)


@pytest.mark.parametrize("seed", range(3))
def test_got10k_on_its_own_dataset(seed: int) -> None:
    found, real, absent = odd_sequence(seed)
    cover = np.array([0 if hidden else 8 for hidden in absent])

    def moved(box: Row) -> Row:
        x, y = min(max(box[0], 0), 50), min(max(box[1], 0), 60)
        return [x, y, min(max(box[2], 0), 50 - x), min(max(box[3], 0), 60 - y)]

    slow = []
    for i in range(1, len(real)):
        if cover[i] > 0:
            a, b = moved(found[i]), moved(real[i])
            slow.append(overlap(a, b) if a[2] * a[3] + b[2] * b[3] else 0.0)
    ours = conventions.got10k(np.array(found), replace(truth(real, absent), cover=cover))
    np.testing.assert_allclose(ours.overlap, slow, atol=1e-12)
    # A box that begins left of the image keeps its width there.
    assert conventions.got10k(np.array([[1.0] * 4, [-10, 0, 20, 20]]), truth([[1.0] * 4, [0, 0, 20, 20]])).overlap == 1


def test_got10k_on_other_datasets_ignores_flags() -> None:
    found, real, absent = odd_sequence(5)
    ours = conventions.got10k(np.array(found), truth(real, absent), "lasot")
    assert ours.length == len(real) and ours.valid.all() and ours.overlap[0] == pytest.approx(1.0)
    slow = [distance(box, there, (max(1, there[2]), max(1, there[3]))) for box, there in zip(found, real, strict=True)]
    np.testing.assert_allclose(ours.centre_norm[1:], slow[1:], rtol=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_clean_counts_present_frames_and_misses_what_is_missing(seed: int) -> None:
    found, real, absent = odd_sequence(seed)
    found[3], found[4] = [NAN] * 4, [1.0, 1, -5, 5]
    slow = []
    for i in range(1, len(real)):
        if absent[i] or real[i][2] <= 0:
            continue
        box = found[i] if i < 35 else [NAN] * 4
        if math.isnan(box[0]) or box[2] <= 0 or box[3] <= 0:
            slow.append((0.0, math.inf, math.inf, True))
            continue
        apart = [box[k] + box[k + 2] / 2 - real[i][k] - real[i][k + 2] / 2 for k in (0, 1)]
        scaled = math.hypot(apart[0] / real[i][2], apart[1] / real[i][3])
        slow.append((overlap(box, real[i]), math.hypot(*apart), scaled, True))
    ours = conventions.clean(np.array(found[:35]), truth(real, absent))
    check(ours, slow)
    assert ours.length == len(slow)


def test_predictions_are_not_changed() -> None:
    found, real, absent = odd_sequence(1)
    given = np.array(found)
    for name in ("lasot", "pytracking", "ostrack", "got10k", "pysot", "clean"):
        getattr(conventions, name)(given, truth(real, absent))
    assert given.tolist() == found
