"""Scores of trackers as files: JSON, a CSV of sequences, success and precision plots, and one page that holds them."""

from __future__ import annotations

import csv
import inspect
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Column, Table

from edgemim.edge.report import Report, plot_curves, save_figure
from edgemim.edge.tracking.metrics import NORM_THRESHOLDS, PRECISION_THRESHOLDS_PX
from edgemim.run import write_text

if TYPE_CHECKING:
    from edgemim.commands.tracking.score import Rules, Scored

# A page of hundreds of filmstrips would open in no browser.
_SHOWN = 12

TITLES = {
    "auc": "AUC",
    "op50": "OP50",
    "op75": "OP75",
    "precision": "P@20px",
    "norm_precision": "Pnorm@0.20",
    "norm_precision_mean": "Pnorm mean",
    "ao": "AO",
    "sr50": "SR 0.50",
    "sr75": "SR 0.75",
}
"""Names of the figures in tables, all percentages: precision at a centre error of 20 pixels, normalised at 0.20 sizes."""


def write_scores(
    out: Path,
    scored: Sequence[Scored],
    rules: Rules,
    frames: Mapping[str, int],
    faults: Mapping[str, str],
    pictures: Mapping[str, Path] | None = None,
) -> dict[str, Any]:
    """Write scores.json, per_sequence.csv, the plots and report.html into `out`; returns what stands in scores.json.

    `pictures` are filmstrips by sequence; the page shows some.
    """
    names = list(scored[0].sequences)
    result = {
        "dataset": rules.dataset,
        "protocol": rules.protocol.name,
        "exclude_invalid_frames": rules.exclude_invalid,
        "sequences": len(names),
        "left_out": dict(faults),
        "overall": {tracker.name: dict(tracker.overall.values) for tracker in scored},
        "per_sequence": {
            name: {
                "frames": frames[name],
                **{tracker.name: dict(tracker.sequences[name].values) for tracker in scored},
            }
            for name in names
        },
        "curves": {tracker.name: _curve_lists(tracker) for tracker in scored},
    }
    write_text(out / "scores.json", json.dumps(_without_nan(result), indent=1) + "\n")
    write_text(out / "per_sequence.csv", _csv(scored, frames))
    plots = success_plots(scored)
    for name, figure in plots.items():
        save_figure(figure, out / f"{name}.png")
    _page(result, plots, rules, pictures or {}).save(out / "report.html")
    return result


def success_plots(scored: Sequence[Scored]) -> dict[str, Figure]:
    """Success, precision and normalised precision against their thresholds, best tracker first, its score in the legend.

    Where only overlaps are known (GOT-10k), success alone.
    """
    thresholds = np.linspace(0, 1, len(scored[0].overall.curves.success))
    axes = {
        "success": (thresholds, "auc" if "auc" in scored[0].overall.values else "ao", "overlap above"),
        "precision": (PRECISION_THRESHOLDS_PX, "precision", "centre error up to, pixels"),
        "norm_precision": (NORM_THRESHOLDS, "norm_precision", "centre error up to, in sizes of the target"),
    }
    plots = {}
    for name, (xs, value, label) in axes.items():
        if value not in scored[0].overall.values:
            continue
        ranked = sorted(scored, key=lambda tracker: -tracker.overall.values[value])
        series = {
            f"{tracker.name} [{tracker.overall.values[value]:.1f}]": (xs, 100 * getattr(tracker.overall.curves, name))
            for tracker in ranked
        }
        plots[name] = plot_curves(series, x=label, y="share of the frames, percent")
    return plots


def print_table(result: Mapping[str, Any]) -> None:
    """The overall figures, one line a tracker."""
    chosen = _figures(result)
    title = f"{result['dataset']}, {result['sequences']} sequences, protocol {result['protocol']}, percent"
    table = Table(Column("tracker", overflow="fold"), *(TITLES[name] for name in chosen), title=title)
    for tracker, values in result["overall"].items():
        table.add_row(tracker, *(f"{values[name]:.2f}" for name in chosen))
    Console().print(table)


def _figures(result: Mapping[str, Any]) -> list[str]:
    first = next(iter(result["overall"].values()))
    return [name for name in TITLES if name in first]


def _page(result: Mapping[str, Any], plots: Mapping[str, Figure], rules: Rules, pictures: Mapping[str, Path]) -> Report:
    chosen = _figures(result)
    trackers = list(result["overall"])
    lead = f"{result['sequences']} sequences of {result['dataset']}, conventions of {result['protocol']}"
    page = Report("Tracking scores", lead).section("Overall")
    ranked = sorted(trackers, key=lambda name: -result["overall"][name][chosen[0]])
    rows = [(name, *(f"{result['overall'][name][key]:.2f}" for key in chosen)) for name in ranked]
    page.table(["tracker", *(TITLES[key] for key in chosen)], rows, caption="Percent; best first.", best=0)
    for name, figure in plots.items():
        page.figure(figure, f"{name.replace('_', ' ')} plot; the figure in brackets is the table's")
    if result["left_out"]:
        page.note(f"Left out for every tracker: {'; '.join(result['left_out'].values())}.", tone="warn")
    page.section("Sequence by sequence")
    kept = [name for name in ("auc", "precision", "norm_precision", "ao", "sr50") if name in chosen]
    heads = [f"{tracker}: {TITLES[key]}" for tracker in trackers for key in kept]
    lines = [
        (name, entry["frames"], *(f"{entry[tracker][key]:.2f}" for tracker in trackers for key in kept))
        for name, entry in result["per_sequence"].items()
    ]
    page.table(["sequence", "frames", *heads], lines)
    if pictures:
        page.section("Filmstrips")
    for name, path in list(pictures.items())[:_SHOWN]:
        page.figure(path, name)
    page.section("How it was counted").text(inspect.getdoc(rules.protocol.errors) or "")
    if result["exclude_invalid_frames"]:
        page.note("Shares are taken of the valid frames alone: not comparable with published figures.", tone="warn")
    return page


def _csv(scored: Sequence[Scored], frames: Mapping[str, int]) -> str:
    text = io.StringIO()
    chosen = [name for name in TITLES if name in scored[0].overall.values]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sequence", "frames", "tracker", *chosen])
    for name in scored[0].sequences:
        for tracker in scored:
            values = tracker.sequences[name].values
            writer.writerow([name, frames[name], tracker.name, *(f"{values[key]:.4f}" for key in chosen)])
    return text.getvalue()


def _curve_lists(tracker: Scored) -> dict[str, list[float]]:
    curve = tracker.overall.curves
    return {name: getattr(curve, name).tolist() for name in ("success", "precision", "norm_precision")}


def _without_nan(value: Any) -> Any:
    """JSON has no NaN: it becomes null (a sequence without a frame to measure, a curve that a toolkit has not)."""
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value
