"""The rows of a benchmark as a table on the console and as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

_COLUMNS = ("batch", "thr.", "p50 ms", "p90 ms", "p99 ms", "images/s", "speed-up", "size MiB", "peak MiB", "others")
_WIDTH = 150  # where the output is no terminal


def row_name(row: Mapping[str, Any]) -> str:
    """What was measured, in words."""
    return f"{row['model']} {row['file']} on {row['runtime']}"


def print_table(result: Mapping[str, Any], console: Console | None = None) -> None:
    """Print a benchmark's content: the machine, a line for each row, and what the signs mean."""
    if console is None:
        console = Console()
        console = console if console.is_terminal else Console(width=_WIDTH)
    machine = result["machine"]
    console.print(
        f"{machine['cpu']}: {machine['usable_cpus']} CPUs, {machine['memory_gib']} GiB, 8-bit instructions: "
        f"{', '.join(machine['int8_instructions']) or 'none'}",
        markup=False,
    )
    table = Table()
    table.add_column("model file on runtime", overflow="fold")
    for column in _COLUMNS:
        table.add_column(column, justify="right")
    for row in result["rows"]:
        table.add_row(*_cells(row), style=None if row["status"] == "ok" else "dim")
    console.print(table)
    baselines = {row["baseline"] for row in result["rows"] if row["status"] == "ok"}
    console.print(
        f"speed-up: median paired ratio to {', '.join(sorted(baselines)) or 'nothing'} at the same batch and threads, "
        "? = disturbed; size: the model file; peak: memory of the whole process; others: share of the CPUs that other "
        "processes took, ! = over 10 %",
        markup=False,
    )


def save_picture(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draw latency an image for every measured row as a PNG; nothing is drawn where nothing was measured."""
    # Not at the top: it brings matplotlib, which the measured processes import with the verb but must not carry.
    from edgemim.edge.report import plot_latency, save_figure

    bars = {}
    for row in rows:
        if row["status"] == "ok":
            label = f"{row_name(row)}, batch {row['batch']}, {row['threads']} thr."
            p50, p90, p99 = (row[f"latency_p{percent}_ms"] / row["batch"] for percent in (50, 90, 99))
            bars[label] = (p50, p90, p99)
    if bars:
        save_figure(plot_latency(bars, unit="ms an image"), path)


def _cells(row: Mapping[str, Any]) -> list[str]:
    name = escape(f"{row_name(row)} {row['version'] or ''}".strip())
    if row["status"] != "ok":
        return [f"{name}: {row['status']}: {escape(row['reason'])}"]
    return [
        name,
        str(row["batch"]),
        str(row["threads"]),
        *(f"{row[f'latency_p{percent}_ms']:.2f}" for percent in (50, 90, 99)),
        f"{row['throughput_images_per_s']:.1f}",
        f"{row['speedup']:.2f}×{'?' if row['speedup_disturbed'] else ' '}",
        f"{row['model_size_mib']:.1f}" if row["model_size_mib"] else "",
        f"{row['memory_peak_mib']:.0f}",
        f"{row['foreign_load']:.0%}{' !' if row['disturbed'] else '  '}",
    ]
