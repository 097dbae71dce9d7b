"""The rows of a benchmark as a table on the console and as a picture."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

HOW_COUNTED = (
    "% of peak: operations a second over the fastest matrix product measured on this machine with as many threads (in 8 bits "
    "for INT8 files, though parts of them compute in float); operations are matrix products and convolutions of the FP32 "
    "ONNX graph, two a multiply-add"
)
_COLUMNS = ("batch", "thr.", "p50 ms", "95 %", "p90", "p99", "images/s", "speed-up", "95 %", "% of peak", "start s")
_MEMORY = ("size MiB", "peak MiB", "others")
_WIDTH = 180  # where the output is no terminal


def row_name(row: Mapping[str, Any]) -> str:
    """What was measured, in words."""
    return f"{row['model']} {row['file']} on {row['runtime']}"


def print_table(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a benchmark's content: the machine, a line for each row, and what the signs mean."""
    if console is None:
        console = Console()
        console = console if console.is_terminal else Console(width=_WIDTH)
    console.print("; ".join((machine_line(result["machine"]), *roof_lines(result))), markup=False)
    table = Table()
    table.add_column("model file on runtime", overflow="fold")
    for column in (*_COLUMNS, *_MEMORY):
        table.add_column(column, justify="right")
    measured = [row for row in result["rows"] if row["status"] == "ok"]
    for _, group in itertools.groupby(measured, key=lambda row: (row["batch"], row["threads"], row["model"])):
        for row in group:
            table.add_row(escape(row_name(row)), *row_cells(row), *_memory_cells(row))
        table.add_section()
    console.print(table)
    for sentence in unmeasured(result["rows"]):
        console.print(sentence, markup=False, style="dim")
    for sentence in best_lines(result):
        console.print(sentence, markup=False)
    console.print("versions: " + ", ".join(dict.fromkeys(_version(row) for row in measured)), markup=False)
    baselines = {row["baseline"] for row in measured}
    console.print(
        f"speed-up: median paired ratio of time an image to {', '.join(sorted(baselines)) or 'nothing'} at the same batch and "
        "threads, ? = disturbed; 95 %: confidence interval; start: from opening to the first answer, once; size: the model "
        "file; peak: memory of the whole process; others: share of the CPUs that other processes took, ! = over 10 %; "
        + HOW_COUNTED,
        markup=False,
    )


def machine_line(machine: Mapping[str, Any]) -> str:
    """The machine in some words."""
    return (
        f"{machine['cpu']}: {machine['usable_cpus']} CPUs, {machine['memory_gib']} GiB, 8-bit instructions: "
        f"{', '.join(machine['int8_instructions']) or 'none'}"
    )


def roof_lines(result: Mapping[str, Any]) -> list[str]:
    """What the machine reaches at most, for each number of threads."""
    return [
        f"{roof['threads']} thread{'s' * (roof['threads'] > 1)} reach {roof['fp32_gflops']:.0f} GFLOP/s in FP32, "
        f"{roof['int8_gops']:.0f} GOP/s in INT8" + _loaded(roof.get("foreign_load", 0.0))
        for roof in result.get("rooflines", ())
    ]


def best_lines(result: Mapping[str, Any]) -> list[str]:
    """How the fastest INT8 file stands to the fastest FP32 one, network by network."""
    lines = []
    for best in result.get("int8_over_best_fp32", ()):
        threads = f"{best['threads']} thread{'s' * (best['threads'] > 1)}"
        lines.append(
            f"{best['model']}, batch {best['batch']}, {threads}: {best['int8']} is {best['speedup']:.2f}× as fast "
            f"[{best['speedup_low']:.2f}-{best['speedup_high']:.2f}]{'?' * best['speedup_disturbed']} as the best FP32, "
            f"{best['fp32']}"
        )
    return lines


def unmeasured(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A sentence for each reason why something was not measured, with all that it holds for."""
    reasons: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if row["status"] != "ok":
            where = f" at batch {row['batch']}" if row.get("batch") else ""
            names = reasons.setdefault((row["status"], row["reason"]), [])
            if (name := row_name(row) + where) not in names:
                names.append(name)
    return [f"{_listed(names)}: {status}: {reason}" for (status, reason), names in reasons.items()]


def row_cells(row: Mapping[str, Any]) -> list[str]:
    """Figures of a measured row; a dash where there is none."""
    share = row.get("roofline_share")
    return [
        str(row["batch"]),
        str(row["threads"]),
        _number(row["latency_p50_ms"]),
        _interval(row.get("latency_p50_low_ms"), row.get("latency_p50_high_ms")),
        *(_number(row[f"latency_p{percent}_ms"]) for percent in (90, 99)),
        f"{row['throughput_images_per_s']:.1f}",
        f"{row['speedup']:.2f}×{'?' if row['speedup_disturbed'] else ' '}",
        _interval(row.get("speedup_low"), row.get("speedup_high")),
        "–" if share is None else f"{100 * share:.0f}",
        _number(row.get("cold_start_s"), 1),
    ]


def save_picture(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw latency an image for every measured row as a PNG; nothing is drawn where nothing was measured."""
    # Not at the top: it brings matplotlib, which the measured processes import with the verb but must not carry.
    from edgemim.edge.report import plot_latency, save_figure

    bars = {}
    for row in rows:
        if row["status"] == "ok" and row["latency_p50_ms"] is not None:
            label = f"{_shortened(row_name(row))}, batch {row['batch']}, {row['threads']} thr."
            p50, p90, p99 = (row[f"latency_p{percent}_ms"] / row["batch"] for percent in (50, 90, 99))
            bars[label] = (p50, p90, p99)
    if bars:
        save_figure(plot_latency(bars, unit="ms an image"), path)


def _memory_cells(row: Mapping[str, Any]) -> list[str]:
    return [
        f"{row['model_size_mib']:.1f}" if row["model_size_mib"] else "",
        f"{row['memory_peak_mib']:.0f}",
        f"{row['foreign_load']:.0%}{' !' if row['disturbed'] else '  '}",
    ]


def _version(row: Mapping[str, Any]) -> str:
    return f"{row['runtime']} {row['version'] or 'of unknown version'}"


def _number(value: float | None, digits: int = 2) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _interval(low: float | None, high: float | None) -> str:
    return "–" if low is None or high is None or low == high == 1 else f"{low:.3g}-{high:.3g}"


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names) if len(names) <= 3 else f"{', '.join(names[:2])} and {len(names) - 2} more"


def _shortened(name: str, limit: int = 60) -> str:
    return name if len(name) <= limit else f"{name[: limit // 2 - 1]}…{name[-limit // 2 :]}"


def _loaded(foreign: float) -> str:
    return f" (others took {foreign:.0%} of the CPUs meanwhile)" if foreign > 0.1 else ""
