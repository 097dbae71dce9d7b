"""`edgemim benchmark --compare BEFORE AFTER`: what became slower, as a table and an exit code."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from edgemim.edge.regression import Change, compare, read_benchmark
from edgemim.errors import GateRefused


def compare_benchmarks(before: Path, after: Path, bound_percent: float) -> dict[str, Any]:
    """Print the change of each case; returns them. Raises GateRefused if one is slower by more than the bound, or gone."""
    changes, lost = compare(read_benchmark(before), read_benchmark(after))
    bound = bound_percent / 100
    _show(changes, bound)
    slower = [change for change in changes if change.verdict(bound) == "slower"]
    undecided = [change for change in changes if change.verdict(bound) == "undecided"]
    if slower or lost:
        reasons = [f"{change.name}: {change.ratio:.2f} of the time before" for change in slower]
        raise GateRefused("; ".join(reasons + [f"{name}: no longer measured" for name in lost]))
    if undecided:
        print(
            f"undecided: {', '.join(change.name for change in undecided)}; repeat on a quiet machine, with more --seconds"
        )
    print(f"no case is slower by more than {bound_percent:g} %")
    return {"changes": [{**change._asdict(), "verdict": change.verdict(bound)} for change in changes]}


def _show(changes: Sequence[Change], bound: float) -> None:
    table = Table()
    for column in ("case", "before ms", "after ms", "ratio", "95 %", "verdict"):
        table.add_column(column, justify="left" if column in ("case", "verdict") else "right")
    for change in changes:
        interval = f"{change.low:.2f}-{change.high:.2f}"
        figures = f"{change.before_ms:.2f}", f"{change.after_ms:.2f}", f"{change.ratio:.2f}", interval
        table.add_row(change.name, *figures, change.verdict(bound) + (" (disturbed)" if change.disturbed else ""))
    console = Console()
    (console if console.is_terminal else Console(width=150)).print(table)
