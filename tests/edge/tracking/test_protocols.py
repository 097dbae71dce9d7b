"""Scores of sequences and datasets: what is averaged over what, and the published figures on real results."""

from __future__ import annotations

import math

import numpy as np
import pytest

from edgemim.edge.tracking.protocols import PROTOCOLS
from edgemim.edge.tracking.sequences import Sequence

PERFECT = np.array([[10.0, 10, 20, 20]] * 6)
AWAY = PERFECT + np.array([500.0, 500, 0, 0])


def truth(name: str = "s", frames: int = 6, absent: tuple[int, ...] = ()) -> Sequence:
    """A target that stands still."""
    flags = np.isin(np.arange(frames), absent)
    return Sequence(name, (), PERFECT[:1].repeat(frames, 0), flags, True, size_px=(100, 100))


@pytest.mark.parametrize(
    ("name", "auc"),
    [("pytracking", 2000 / 21), ("ostrack", 2000 / 21), ("lasot", 2000 / 21), ("pysot", 2000 / 21), ("clean", 100.0)],
)
def test_a_perfect_tracker(name: str, auc: float) -> None:
    values = PROTOCOLS[name].score(PERFECT, truth(), "lasot").values
    assert values["auc"] == pytest.approx(auc)
    assert values["precision"] == values["norm_precision"] == 100
    hidden = PROTOCOLS[name].score(PERFECT, truth(absent=(4, 5)), "lasot").values
    assert hidden["auc"] == pytest.approx(auc if name == "clean" else auc * 4 / 6)


def test_shares_of_the_valid_frames_alone() -> None:
    found = PROTOCOLS["pytracking"].score(PERFECT, truth(absent=(4, 5)), "lasot", exclude_invalid=True)
    assert found.values["auc"] == pytest.approx(2000 / 21)


def test_the_first_frame_is_given_where_a_toolkit_gives_it() -> None:
    values = {name: rules.score(AWAY, truth(), "lasot").values["op50"] for name, rules in PROTOCOLS.items()}
    given = pytest.approx(100 / 6)
    assert values == {"lasot": given, "pytracking": given, "ostrack": given, "got10k": given, "pysot": 0, "clean": 0}


def test_sequences_count_alike_but_on_got10k_frames_do() -> None:
    parts = [(PERFECT, truth("a")), (AWAY[:3], truth("b", 3))]
    for name, dataset, key, expected in (
        ("clean", "lasot", "auc", 50.0),
        ("got10k", "got10k", "ao", 100 * 5 / 7),  # the first frame is dropped
        ("got10k", "otb", "op50", (100 + 100 / 3) / 2),
    ):
        rules = PROTOCOLS[name]
        scores = rules.overall([rules.score(boxes, real, dataset) for boxes, real in parts], dataset)
        assert scores.values[key] == pytest.approx(expected)


def test_got10k_gives_its_own_three_figures_and_its_norm_mean_elsewhere() -> None:
    rules = PROTOCOLS["got10k"]
    assert rules.score(PERFECT, truth(), "got10k").values == {"ao": 100, "sr50": 100, "sr75": 100}
    values = rules.score(PERFECT + np.array([2.0, 0, 0, 0]), truth(), "lasot").values
    # Two of twenty pixels: 41 of the 51 thresholds are at least 0.10; the first frame is given.
    assert values["norm_precision"] == 100
    assert values["norm_precision_mean"] == pytest.approx(100 * (5 * 41 + 51) / (6 * 51))
    nothing = truth(absent=tuple(range(6)))
    assert math.isnan(rules.score(PERFECT, nothing, "got10k").values["ao"])


def test_lasots_toolkit_leaves_sequences_without_any_success_out_of_its_mean() -> None:
    rules = PROTOCOLS["lasot"]
    lost = np.concatenate([AWAY, AWAY[:1]])
    all_hidden = truth("b", 6, absent=(0, 1, 2, 3, 4, 5))
    parts = [rules.score(PERFECT, truth("a"), "lasot"), rules.score(lost, all_hidden, "lasot")]
    assert parts[1].values["auc"] == 0
    assert rules.overall(parts, "lasot").values["auc"] == pytest.approx(2000 / 21)
    assert PROTOCOLS["pytracking"].overall(parts, "lasot").values["auc"] == pytest.approx(1000 / 21)
    assert rules.overall(parts[1:], "lasot").values["auc"] == 0
