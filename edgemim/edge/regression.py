"""Two benchmarks of the same models, earlier and later: what became slower."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from edgemim.errors import UserError

_SAME = ("model", "file", "runtime", "batch", "threads")
_RESAMPLES = 2000


class Change(NamedTuple):
    """One case in both benchmarks."""

    name: str
    before_ms: float
    after_ms: float
    ratio: float
    """Median latency after over before."""
    low: float
    high: float
    """95 % confidence interval of the ratio, by resampling the blocks of both runs."""
    disturbed: bool
    """Whether other processes took over 10 % of the CPUs in one of them."""

    def verdict(self, bound: float) -> str:
        """'slower' if even the interval's low end is above 1 + bound, 'undecided' if it may be, or the run was disturbed."""
        if self.high <= 1 + bound:
            return "ok"
        return "slower" if self.low > 1 + bound and not self.disturbed else "undecided"


def read_benchmark(path: Path) -> dict[str, Any]:
    """The content of a benchmark.json, or of the one in a folder. Raises UserError."""
    file = next(
        (found for found in (path / "benchmark.json", path / "benchmark" / "benchmark.json") if found.is_file()), path
    )
    try:
        content = json.loads(file.read_bytes())
        rows = content["rows"]
        if not isinstance(rows, list) or not all(isinstance(row, dict) and "status" in row for row in rows):
            raise TypeError("its rows are none")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{file} is no benchmark ({error}); give a benchmark.json or the folder that holds it"
        ) from error
    return content


def compare(before: Mapping[str, Any], after: Mapping[str, Any]) -> tuple[list[Change], list[str]]:
    """Changes of the cases that were measured in both, and the names of those that the later one has lost.

    Raises UserError if the machines differ, or no case is in both.
    """
    machines = [content.get("machine", {}).get("cpu") for content in (before, after)]
    if machines[0] != machines[1]:
        raise UserError(
            f"the first was measured on {machines[0]}, the second on {machines[1]}; compare runs of one machine"
        )
    earlier, later = (_measured(content["rows"]) for content in (before, after))
    changes = [_change(name, row, later[name]) for name, row in earlier.items() if name in later]
    if not changes:
        raise UserError(
            "the benchmarks share no case (model, file, runtime, batch and threads), so nothing can be compared"
        )
    return changes, [name for name in earlier if name not in later]


def _measured(rows: Sequence[Mapping[str, Any]]) -> dict[str, Mapping[str, Any]]:
    named = {}
    for row in rows:
        if row["status"] == "ok":
            model, file, runtime, batch, threads = (row[key] for key in _SAME)
            named[f"{model} {file} on {runtime}, batch {batch}, {threads} threads"] = row
    return named


def _change(name: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Change:
    generator = np.random.default_rng(0)
    old, new = (np.asarray(row["block_medians_ms"], dtype=np.float64) for row in (before, after))
    medians = [
        np.median(values[generator.integers(0, len(values), (_RESAMPLES, len(values)))], axis=1)
        for values in (old, new)
    ]
    low, high = np.percentile(medians[1] / medians[0], [2.5, 97.5])
    return Change(
        name,
        float(np.median(old)),
        float(np.median(new)),
        float(np.median(new) / np.median(old)),
        float(low),
        float(high),
        bool(before["disturbed"] or after["disturbed"]),
    )
