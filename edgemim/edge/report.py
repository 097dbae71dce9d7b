"""Pictures of results and one self-contained HTML page that holds them; no torch, no network, no script in the page."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from PIL import Image

from edgemim.errors import UserError
from edgemim.run import write_text

# Okabe and Ito's palette: distinguishable with every kind of colour vision.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DPI = 144


@dataclass
class _Section:
    title: str
    parts: list[dict[str, Any]] = field(default_factory=list)


class Report:
    """A page built top to bottom: sections of paragraphs, tables and figures. Everything given is shown as plain text."""

    def __init__(self, title: str, lead: str = "") -> None:
        self.title, self.lead = title, lead
        self._sections: list[_Section] = []

    def section(self, title: str) -> Report:
        """Start a section; what follows goes into it."""
        self._sections.append(_Section(title))
        return self

    def text(self, text: str) -> Report:
        """Add a paragraph."""
        return self._add("text", text=text)

    def note(self, text: str, tone: str = "info") -> Report:
        """Add a paragraph that stands out; tone: 'info', 'good', 'warn' or 'bad'."""
        return self._add("note", text=text, tone=tone)

    def code(self, text: str) -> Report:
        """Add commands or other text with fixed spacing."""
        return self._add("code", text=text)

    def table(
        self, columns: Sequence[str], rows: Iterable[Sequence[object]], caption: str = "", best: int | None = None
    ) -> Report:
        """Add a table; columns whose cells are all numbers (or start like one) are right-aligned, row `best` is bold."""
        cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
        for row in cells:
            if len(row) != len(columns):
                raise ValueError(f"a row of {len(row)} cells in a table of {len(columns)} columns")
        heads = [
            {"name": name, "number": bool(cells) and all(_numeric(row[i]) for row in cells)}
            for i, name in enumerate(columns)
        ]
        lines = [{"cells": row, "best": index == best} for index, row in enumerate(cells)]
        return self._add("table", columns=heads, rows=lines, caption=caption)

    def figure(self, picture: Figure | Path, caption: str) -> Report:
        """Add a matplotlib figure or an image file. Raises UserError if the file cannot be read as a picture."""
        content, width, height = _as_png(picture)
        png = base64.b64encode(content).decode()
        return self._add("figure", png=png, caption=caption, width=width, height=height)

    def save(self, path: Path) -> Path:
        """Write the page: one file, nothing referenced. A reader sees the old page or the new one, never half."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, self.html())
        return path

    def html(self) -> str:
        """The page; every text in it is escaped."""
        loader = jinja2.PackageLoader("edgemim.edge", "templates")
        options = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
        template = jinja2.Environment(loader=loader, autoescape=True, **options).get_template("report.html")
        made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
        return template.render(
            title=self.title, lead=self.lead, sections=self._sections, footer=f"Made by edgemim, {made}."
        )

    def _add(self, kind: str, **content: Any) -> Report:
        if not self._sections:
            raise ValueError("start a section first")
        self._sections[-1].parts.append({"kind": kind, **content})
        return self


def _numeric(cell: str) -> bool:
    head = cell.strip().lstrip("±+-−<≥≤×").split(" ")[0].rstrip("%×?")
    if head in ("", "–", "n/a"):
        return True
    try:
        float(head.replace(",", ""))
    except ValueError:
        return False
    return True


def _as_png(picture: Figure | Path) -> tuple[bytes, int, int]:
    """PNG bytes and the size in CSS pixels at which the picture is shown."""
    if isinstance(picture, Figure):
        buffer = io.BytesIO()
        picture.savefig(buffer, format="png", dpi=_DPI, facecolor="white")
        width, height = picture.get_size_inches() * 96
        return buffer.getvalue(), round(width), round(height)
    try:
        with Image.open(picture) as image:
            buffer = io.BytesIO()
            image.convert("RGB").save(buffer, "PNG", optimize=True)
            return buffer.getvalue(), image.width, image.height
    except OSError as error:
        raise UserError(f"cannot show picture {picture}: {error}") from error


def save_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as a PNG file; missing folders are made. Raises UserError if it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content, _, _ = _as_png(figure)
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"cannot write {path}: {error.strerror or error}; free space or choose another --out"
        ) from error
    return path


def read_metrics(path: Path) -> list[dict[str, float]]:
    """The lines of a run's metrics.jsonl; a half-written last line is left out, a missing file gives none."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else []:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def column(metrics: Iterable[Mapping[str, float]], name: str) -> tuple[list[float], list[float]]:
    """Steps and values of one figure, where it was logged."""
    chosen = [(line["step"], line[name]) for line in metrics if name in line]
    return [step for step, _ in chosen], [value for _, value in chosen]


def plot_curves(
    series: Mapping[str, tuple[Sequence[float], Sequence[float]]], *, x: str, y: str, log_y: bool = False
) -> Figure:
    """Lines of (x values, y values) by name."""
    figure, axes = frame(6.6, 3.3)
    for index, (name, (xs, ys)) in enumerate(series.items()):
        style = ("-", "--", ":")[index // len(COLOURS) % 3]
        axes.plot(xs, ys, label=name, color=COLOURS[index % len(COLOURS)], linestyle=style, linewidth=1.6)
    if log_y:
        axes.set_yscale("log")
    axes.set(xlabel=x, ylabel=y)
    axes.legend(frameon=False, fontsize=8)
    return figure


def plot_bars(
    values: Mapping[str, Sequence[float]], *, y: str, baseline: float | None = None, note: str = ""
) -> Figure:
    """A bar for the mean of each named list, its sample deviation as a whisker and every value as a dot."""
    figure, axes = frame(6.6, 3.3)
    for index, (_, points) in enumerate(values.items()):
        mean, deviation = float(np.mean(points)), float(np.std(points, ddof=1)) if len(points) > 1 else 0.0
        axes.bar(index, mean, width=0.6, yerr=deviation, capsize=4, color=COLOURS[index % len(COLOURS)], alpha=0.75)
        spread = np.linspace(-0.12, 0.12, len(points)) if len(points) > 1 else [0.0]
        axes.plot(index + np.asarray(spread), points, "o", color="#222222", markersize=3.5, zorder=3)
        axes.annotate(
            f"{mean:.1f}", (index, 0), (0, 4), textcoords="offset points", ha="center", color="white", weight="bold"
        )
    if baseline is not None:
        axes.axhline(baseline, color="#222222", linewidth=1, linestyle="--", label=note)
        axes.legend(frameon=False, fontsize=8, loc="upper right", bbox_to_anchor=(1.0, 1.12))
    axes.set_xticks(range(len(values)), list(values))
    axes.set_ylabel(y)
    return figure


def plot_latency(rows: Mapping[str, tuple[float, float, float]], *, unit: str = "ms") -> Figure:
    """A dot for each p50 with a line to p99 and a mark at p90, rows top to bottom as given.

    The axis is logarithmic: a runtime ten times slower, or one late call, would squeeze the rest of a linear one.
    """
    figure, axes = frame(7.2, 1.2 + 0.3 * len(rows))
    for index, (p50, p90, p99) in enumerate(rows.values()):
        axes.plot([p50, p99], [index, index], color="#888888", linewidth=1.4, zorder=1)
        axes.plot(p90, index, "|", color="#555555", markersize=9, markeredgewidth=1.6)
        axes.plot(p50, index, "o", color=COLOURS[0], markersize=6.5)
        axes.annotate(f"{p50:.3g}", (p50, index), (0, 5), textcoords="offset points", ha="center", fontsize=7.5)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.set_ylim(len(rows) - 0.5, -0.8)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.grid(axis="x", which="both", color="#ececec", linewidth=0.8)
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(f"latency in {unit}, logarithmic: dot p50, mark p90, end of the line p99")
    return figure


def plot_confusion(counts: np.ndarray, labels: Sequence[str]) -> Figure:
    """Counts [true, predicted], each row shaded by its share; numbers are written where they fit (up to 30 classes),
    as percent of the row where counts are long (pixels)."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = float(np.clip(1.6 + 0.36 * len(labels), 3.5, 11))
    figure, axes = frame(side + 0.6, side)
    axes.grid(visible=False)
    # Cells need not be square: with a fixed aspect, long class names push the axis label out of the picture.
    picture = axes.imshow(share, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    long = counts.max(initial=0) >= 10_000
    if len(labels) <= 30:
        for row, line in enumerate(counts):
            for col, count in enumerate(line):
                shade = "white" if share[row, col] > 0.55 else "#333333"
                if count:
                    text = f"{100 * share[row, col]:.0f}%" if long else f"{int(count)}"
                    axes.text(col, row, text, ha="center", va="center", fontsize=7, color=shade)
        axes.set_xticks(range(len(labels)), list(labels), rotation=60, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(labels)), list(labels))
    axes.set(xlabel="predicted", ylabel="true")
    figure.colorbar(picture, ax=axes, fraction=0.045, pad=0.02, label="share of the true class")
    return figure


def plot_images(rows: Sequence[Sequence[np.ndarray]], columns: Sequence[str]) -> Figure:
    """Rows of uint8 images [h, w, 3] (or grey [h, w]) under column titles."""
    figure = Figure(figsize=(1.15 * len(columns), 1.15 * len(rows) + 0.3), layout="constrained")
    grid = figure.subplots(len(rows), len(columns), squeeze=False)
    for line, images in zip(grid, rows, strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.set_axis_off()
    for axes, title in zip(grid[0], columns, strict=True):
        axes.set_title(title, fontsize=8)
    return figure


def frame(width: float, height: float) -> tuple[Figure, Axes]:
    """A figure of that size in inches and its plain axes: no pyplot, so nothing global and no display."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="y", color="#e6e6e6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=8.5)
    return figure, axes
