"""Pictures of a benchmark: latency with intervals, images a second, and latency against accuracy."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from edgemim.edge.report import COLOURS, frame

Row = Mapping[str, Any]

_RUNTIME_COLOURS = {
    "pytorch": "#7a7a7a",
    "pytorch-compiled": "#b0b0b0",
    "onnxruntime": COLOURS[0],
    "openvino": COLOURS[1],
    "openvino-throughput": COLOURS[4],
    "onnxruntime-cuda": COLOURS[5],
    "onnxruntime-tensorrt": COLOURS[3],
    "tensorrt": COLOURS[2],
}
_HATCHES = {"fp32": "", "fp16": "..", "bf16": "..", "int8": "///"}
_MARKERS = {"fp32": "o", "fp16": "s", "bf16": "s", "int8": "D"}
_ROW_INCH = 0.27


def plot_bars_with_intervals(rows: Sequence[Row]) -> Figure:
    """Median latency of an image as bars with their 95 % interval, one block of bars for each model."""

    def value(row: Row) -> tuple[float, float, float]:
        middle, low, high = (row[f"latency_{name}_ms"] / row["batch"] for name in ("p50", "p50_low", "p50_high"))
        return middle, low, high

    return _bars([row for row in rows if row["latency_p50_ms"] is not None], value, "median latency in ms an image")


def plot_throughput(rows: Sequence[Row]) -> Figure:
    """Images a second as bars, one block of bars for each model."""

    def value(row: Row) -> tuple[float, float, float]:
        speed = row["throughput_images_per_s"]
        return speed, speed, speed

    return _bars(rows, value, "images a second")


def plot_accuracy(rows: Sequence[Row], metric: str) -> Figure:
    """Latency of an image (logarithmic) against the score in the manifest; the marks of one model are joined."""
    figure, axes = frame(7.2, 4.2)
    models = list(dict.fromkeys(row["model"] for row in rows))
    for row in rows:
        x = row["latency_p50_ms"] / row["batch"]
        colour = _RUNTIME_COLOURS.get(row["runtime"], "#000000")
        marker = _MARKERS.get(row["precision"], "o")
        axes.plot(x, row["score"], marker, color=colour, markersize=8, markeredgecolor="white")
    for model in models:
        own = sorted((row["latency_p50_ms"] / row["batch"], row["score"]) for row in rows if row["model"] == model)
        axes.plot([x for x, _ in own], [y for _, y in own], color="#cccccc", linewidth=1, zorder=0)
        axes.annotate(model, own[0], (-2, 9), textcoords="offset points", fontsize=8, ha="left")
    axes.set_xscale("log")
    _plain_log(axes, [row["latency_p50_ms"] / row["batch"] for row in rows])
    scores = [row["score"] for row in rows]
    margin = max(0.5, 0.35 * (max(scores) - min(scores)))
    axes.set_ylim(min(scores) - margin, max(scores) + margin)
    axes.set(xlabel="median latency in ms an image, logarithmic", ylabel=metric)
    axes.grid(axis="x", color="#ececec", linewidth=0.8)
    _legend(axes, rows, shapes=True)
    return figure


def _bars(rows: Sequence[Row], value: Callable[[Row], tuple[float, float, float]], label: str) -> Figure:
    """Bars from the left, models one under the other as they come, a gap between them."""
    ordered = [row for model in dict.fromkeys(row["model"] for row in rows) for row in rows if row["model"] == model]
    models = [row["model"] for row in ordered]
    gaps = np.cumsum([0, *(0.9 * (a != b) for a, b in itertools.pairwise(models))])
    places = np.arange(len(ordered)) + gaps + 0.9
    figure, axes = frame(8.6, 1.3 + _ROW_INCH * (float(places[-1]) + 1))
    for place, row in zip(places, ordered, strict=True):
        middle, low, high = value(row)
        colour, hatch = _RUNTIME_COLOURS.get(row["runtime"], "#000000"), _HATCHES.get(row["precision"], "")
        axes.barh(place, middle, 0.78, color=colour, hatch=hatch, edgecolor="white", linewidth=0)
        if high > low:
            axes.plot([low, high], [place, place], color="#111111", linewidth=1.4, solid_capstyle="butt")
        text = (f"{middle:,.0f}" if middle >= 100 else f"{middle:.3g}") + " !" * row["disturbed"]
        axes.annotate(text, (max(middle, high), place), (4, 0), textcoords="offset points", va="center", fontsize=7.5)
    for model in dict.fromkeys(models):
        first = places[models.index(model)]
        axes.annotate(
            model, (0, first - 0.88), (3, 0), textcoords="offset points", va="center", fontsize=8.5, weight="bold"
        )
    axes.set_yticks(places, [f"{row['file']} on {row['runtime']}" for row in ordered])
    axes.set_ylim(float(places[-1]) + 0.7, -0.5)
    axes.set_xlim(0, 1.09 * max(value(row)[2] for row in ordered))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#ececec", linewidth=0.8)
    axes.set_xlabel(label)
    _legend(axes, ordered, shapes=False)
    return figure


def _legend(axes: Axes, rows: Sequence[Row], *, shapes: bool) -> None:
    """Colours are runtimes; hatches, or shapes, are precisions."""
    runtimes = dict.fromkeys(row["runtime"] for row in rows)
    handles: list[Any] = [Patch(color=_RUNTIME_COLOURS.get(name, "#000000"), label=name) for name in runtimes]
    for precision in dict.fromkeys(row["precision"] for row in rows):
        if shapes:
            marker = _MARKERS.get(precision, "o")
            handles += axes.plot([], [], marker, color="#444444", label=precision)
        elif _HATCHES.get(precision):
            handles.append(Patch(facecolor="#777777", edgecolor="white", hatch=_HATCHES[precision], label=precision))
    axes.legend(
        handles=handles,
        frameon=False,
        fontsize=8,
        ncols=min(len(handles), 6),
        loc="lower left",
        bbox_to_anchor=(0, 1.0),
    )


def _plain_log(axes: Axes, values: Sequence[float]) -> None:
    """Ticks at 1, 2 and 5 times powers of ten, written out, with some room on both sides."""
    low, high = min(values) / 1.3, max(values) * 1.3
    powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
    ticks = [step * 10.0**power for power in powers for step in (1, 2, 5) if low <= step * 10.0**power <= high]
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.minorticks_off()
