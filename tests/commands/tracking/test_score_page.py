"""The files of scores: plots by rank, GOT-10k's fewer figures, and JSON without NaN."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgemim.commands.tracking.score import Rules, Scored
from edgemim.commands.tracking.score_page import print_table, success_plots, write_scores
from edgemim.edge.tracking.protocols import PROTOCOLS
from edgemim.edge.tracking.sequences import Sequence

REAL = np.array([[10.0, 10, 20, 20]] * 8)


def scored(rules: Rules, name: str, offset: float, frames: int = 8) -> Scored:
    """A tracker that is `offset` pixels off on two sequences."""
    no = np.zeros(frames, bool)
    truths = [Sequence(one, (), REAL[:frames], no, size_px=(200, 100)) for one in ("first", "second")]
    return rules.whole(name, {truth.name: rules.one(REAL + np.array([offset, 0, 0, 0]), truth) for truth in truths})


def test_plots_rank_trackers_and_say_their_score() -> None:
    rules = Rules("otb", PROTOCOLS["clean"])
    plots = success_plots([scored(rules, "far", 10.0), scored(rules, "near", 1.0)])
    assert list(plots) == ["success", "precision", "norm_precision"]
    (axes,) = plots["success"].axes
    labels = [text.get_text() for text in axes.get_legend().get_texts()]  # pyright: ignore[reportOptionalMemberAccess]
    assert labels == ["near [90.5]", "far [33.3]"]
    near = axes.get_lines()[0]
    assert np.asarray(near.get_ydata())[[0, 18, 19]].tolist() == [100, 100, 0]  # its overlap is 19/21
    assert np.asarray(near.get_xdata())[-1] == 1.0


def test_got10k_has_a_success_plot_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rules = Rules("got10k", PROTOCOLS["got10k"])
    trackers = [scored(rules, "ours", 1.0)]
    result = write_scores(tmp_path, trackers, rules, {"first": 8, "second": 8}, {"third": "sequence third: broken"})
    assert {path.name for path in tmp_path.iterdir()} == {
        "scores.json",
        "per_sequence.csv",
        "success.png",
        "report.html",
    }
    assert (tmp_path / "per_sequence.csv").read_text().splitlines()[0] == "sequence,frames,tracker,ao,sr50,sr75"
    assert "sequence third: broken" in (tmp_path / "report.html").read_text()
    print_table(result)
    assert "90.48" in capsys.readouterr().out


def test_what_cannot_be_measured_is_null(tmp_path: Path) -> None:
    rules = Rules("got10k", PROTOCOLS["got10k"])
    write_scores(tmp_path, [scored(rules, "ours", 1.0, frames=1)], rules, {"first": 1, "second": 1}, {})
    text = (tmp_path / "scores.json").read_text()
    assert "NaN" not in text and json.loads(text)["per_sequence"]["first"]["ours"]["ao"] is None
