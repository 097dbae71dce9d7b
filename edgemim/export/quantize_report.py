"""The report on an artifact's INT8 files: judged again where they lie, as a table, as JSON and as a picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter
from rich.table import Table

from edgemim.edge.artifact import Artifact
from edgemim.edge.machine import describe
from edgemim.edge.tracking.inference import TEMPLATE_SUFFIX
from edgemim.errors import UserError
from edgemim.export.int8_config import Int8Config
from edgemim.export.int8_gate import Maker, measure_file
from edgemim.export.quantize import SQUARE_MAKER, Verdict, check_labels
from edgemim.run import write_text
from edgemim.tasks.task import Task

REPORT = "report.json"
PICTURE = "report.png"
_MADE = ("recipe", "smoothed", "float_layers", "float_blocks", "search", "calibration_images", "calibration_sha256")
_LEAST_ERROR = 1e-7

Reports = Mapping[str, Mapping[str, Any]]
"""Figures by file, as `measure_file` gives them."""


def int8_files(artifact: Artifact) -> list[str]:
    """Keys of the artifact's INT8 files; of a tracker's pairs the search graph's."""
    files = artifact.manifest.files.items()
    return [key for key, entry in files if entry.precision == "int8" and not key.endswith(TEMPLATE_SUFFIX)]


def judge_again(artifact: Artifact, task: Task, config: Int8Config, maker: Maker | None = None) -> list[Verdict]:
    """Judge the INT8 files that an artifact has, on this machine, by the gate that let them in; nothing is changed.

    A file that would not be let in is 'refused' even if it was forced. Raises UserError if there are none, or if the
    task is not the artifact's.
    """
    check_labels(artifact, task)
    keys = int8_files(artifact)
    if not keys:
        raise UserError(f"{artifact.folder} has no INT8 files to report on; make them with edgemim quantize")
    maker, verdicts = maker or SQUARE_MAKER, []
    for key in keys:
        comparison = maker.compare(artifact, key, task, config)
        made = {name: value for name, value in artifact.manifest.quantization.get(key, {}).items() if name in _MADE}
        report = {**made, **measure_file(artifact, key, comparison, task, config, maker)}
        outcome = "refused" if report["reasons"] else "kept"
        verdicts.append(Verdict(key, outcome, tuple(report["reasons"]), {**report, "outcome": outcome}))
    return verdicts


def write_report(folder: Path, name: str, reports: Reports) -> None:
    """Write report.json and report.png into a folder: figures of each file of artifact `name`, and this machine."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "artifact": name,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": describe(),
        "files": {key: {**report, "speed_up": _speed_ups(report)} for key, report in reports.items()},
    }
    write_text(folder / REPORT, json.dumps(content, indent=2) + "\n")
    try:
        report_figure(name, reports).savefig(folder / PICTURE, dpi=120)
    except OSError as error:
        raise UserError(
            f"cannot write {folder / PICTURE}: {error.strerror or error}; free space and try again"
        ) from error


def _speed_ups(report: Mapping[str, Any]) -> dict[str, float]:
    """FP32's time over INT8's, by number of threads."""
    return {str(speed["threads"]): 1 / speed["ratio"] for speed in report["speeds"]}


def report_table(verdicts: Sequence[Verdict]) -> Table:
    """One row a file: what it lost, how fast and how large it is, and the verdict."""
    table = Table(title="INT8 against FP32 on the same runtime")
    metric, answers = (verdicts[0].report[key] for key in ("metric", "answers"))
    columns = ("file", "images", f"{metric} FP32", f"{metric} INT8", f"equal {answers}", "cosine", "worst block")
    for column in (*columns, "in float", "speed-up", "MiB (FP32)", "verdict"):
        table.add_column(column, justify="left" if column in ("file", "worst block", "verdict") else "right")
    for verdict in verdicts:
        report = verdict.report
        block, cosine = min(report["block_cosine"].items(), key=lambda entry: entry[1])
        table.add_row(
            verdict.key,
            str(report["images"]),
            _percent(report["score_fp32"]),
            _percent(report["score_int8"]),
            _percent(report["agreement"]),
            f"{report['cosine']:.5f}",
            f"{block} {cosine:.5f}",
            _in_float(report),
            " / ".join(_speed(speed) for speed in report["speeds"]),
            f"{report['size_bytes'] / 2**20:.2f} ({report['size_bytes_fp32'] / 2**20:.2f})",
            verdict.outcome,
        )
    return table


def _in_float(report: Mapping[str, Any]) -> str:
    layers = report.get("float_layers", [])
    return f"{len(layers)} layers ({', '.join(report['float_blocks'])})" if layers else "-"


def _speed(speed: Mapping[str, Any]) -> str:
    return f"{1 / speed['ratio']:.2f}×{'?' * speed['undecided']} ({speed['threads']} thr.)"


def _percent(value: float | None) -> str:
    return "no labels" if value is None else f"{value:.2f} %"


def report_figure(name: str, reports: Reports) -> Figure:
    """Cosine of each block by file on the left, speed-up and share of equal answers by file on the right."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    figure.suptitle(f"{name}: INT8 against FP32")
    grid = figure.add_gridspec(2, 2, width_ratios=(3, 2))
    _draw_blocks(figure.add_subplot(grid[:, 0]), reports)
    _draw_speed(figure.add_subplot(grid[0, 1]), reports)
    _draw_agreement(figure.add_subplot(grid[1, 1]), reports)
    return figure


def _draw_blocks(axes: Axes, reports: Reports) -> None:
    """Cosines near 1 are told apart on a logarithmic scale of what they lack."""
    names = list(dict.fromkeys(block for report in reports.values() for block in report["block_cosine"]))
    for key, report in reports.items():
        lacking = [max(1 - report["block_cosine"].get(block, float("nan")), _LEAST_ERROR) for block in names]
        axes.plot(range(len(names)), lacking, marker="o", label=key)
    axes.set_yscale("log")
    axes.invert_yaxis()
    axes.yaxis.set_major_formatter(FuncFormatter(lambda lack, _: f"{1 - lack:.7f}".rstrip("0").rstrip(".")))
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right", fontsize=8)
    axes.set_title("cosine of each block's output", fontsize=10)
    axes.set_ylabel("cosine (1 is the same)")
    axes.grid(alpha=0.3)
    axes.legend()


def _draw_speed(axes: Axes, reports: Reports) -> None:
    threads = list(dict.fromkeys(count for report in reports.values() for count in _speed_ups(report)))
    height = 0.8 / len(threads)
    for number, count in enumerate(threads):
        places = [row + number * height - 0.4 + height / 2 for row in range(len(reports))]
        values = [_speed_ups(report).get(count, 0.0) for report in reports.values()]
        bars = axes.barh(places, values, height, label=f"{count} thread{'s' * (count != '1')}")
        axes.bar_label(bars, [f"{value:.2f}×" for value in values], padding=2, fontsize=8)
    axes.axvline(1, color="black", linewidth=1)
    axes.set_yticks(range(len(reports)), list(reports))
    axes.margins(x=0.6)
    axes.set_title("speed-up over FP32, same runtime", fontsize=10)
    axes.legend(fontsize=8, loc="upper right")
    axes.invert_yaxis()


def _draw_agreement(axes: Axes, reports: Reports) -> None:
    values = [report["agreement"] for report in reports.values()]
    bars = axes.barh(range(len(reports)), values, 0.5, color="tab:green")
    axes.bar_label(bars, [_told(report) for report in reports.values()], label_type="center", fontsize=8)
    limits = {report["thresholds"]["min_agreement"] for report in reports.values()}
    for limit in limits:
        axes.axvline(limit, color="black", linewidth=1)
    axes.set_xlim(max(0.0, min(*values, *limits) - 5), 100.5)
    axes.set_yticks(range(len(reports)), list(reports))
    first = next(iter(reports.values()))
    axes.set_title(f"equal {first['answers']}; the line is the least that passes", fontsize=10)
    axes.set_xlabel("%")
    axes.invert_yaxis()


def _told(report: Mapping[str, Any]) -> str:
    drop = report["drop_points"]
    lost = "" if drop is None else f", {report['metric']} {-drop:+.2f} points"
    return f"{report['agreement']:.2f} %{lost}"
