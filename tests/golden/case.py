"""One folder of golden values, and the comparison of our tensors with them at the tolerance that the case states."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

_TOLERANCE = {"rtol": 1e-4, "atol": 1e-5}
"""Of a case that states none."""
# The reference was itself computed in float32: nobody can be nearer to it than a few times its own rounding.
_ROUNDING = 4.0
# Norms of gradients that are zero in exact arithmetic hold rounding alone; it is judged against the largest norm, the
# wider the more rounding a case says that it has (1e-6 of it where rtol is 1e-4).
_NORM_FLOOR = 0.01


class NotACase(Exception):
    """The folder holds no golden case; the message says what is missing."""


class NotCovered(Exception):
    """No code of the project computes what the case holds."""


@dataclass
class Recording:
    """What a runner computed, kept to be compared with later."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    norms: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """Facts, inputs, outputs and weights (under the original names) of one case."""

    folder: Path
    name: str
    facts: dict[str, Any]
    weights: dict[str, Tensor]
    inputs: dict[str, Tensor]
    outputs: dict[str, Tensor]
    recording: Recording | None = None

    @property
    def config(self) -> dict[str, Any]:
        """Sizes and settings of the original model."""
        return self.facts["config"]

    @staticmethod
    def open(folder: Path) -> Case:
        """Read a case folder. Raises NotACase."""
        try:
            facts = json.loads((folder / "case.json").read_text())
            name = facts.get("case", folder.resolve().name)
            tensors = [_tensors(folder, part, facts) for part in ("weights", "inputs", "outputs")]
        except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
            raise NotACase(f"{folder} is no golden case: {error}") from error
        return Case(folder, str(name), facts, *tensors)


def _tensors(folder: Path, part: str, facts: Mapping[str, Any]) -> dict[str, Tensor]:
    path = folder / f"{part}.safetensors"
    return load_file(path) if facts.get(part) or path.exists() else {}


def kind_of(name: str, known: Iterable[str]) -> str | None:
    """What a case named so holds: the longest of the known names that it is, or begins with and goes on after a sign or
    number (`d_mae_w96`, `mae2`, not `maezero`); None if there is none."""
    kinds = [kind for kind in known if re.match(rf"{re.escape(kind)}(?![A-Za-z])", name)]
    return max(kinds, key=len, default=None)


def _parameter(output: str) -> str | None:
    """The parameter whose gradient an output is, if it is one: it may stand below the mode that it was taken in."""
    found = re.fullmatch(r"(?:train\.)?grad\.(.+)", output)
    return found[1] if found else None


@dataclass(frozen=True)
class Line:
    """One compared tensor, or group of numbers, and how near it came."""

    name: str
    error: float
    used: float
    note: str = ""

    @property
    def passed(self) -> bool:
        """Whether every number lies within its tolerance."""
        return self.used <= 1.0

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "OUTSIDE"
        return (
            f"  {verdict:<8}{self.name:<40} max abs error {self.error:.2e}, {self.used:7.2%} of tolerance {self.note}"
        )


@dataclass
class Comparison:
    """Collects one line a tensor, and the names of what was left out."""

    case: Case
    lines: list[Line] = field(default_factory=list)
    left_out: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        stated = self.case.facts.get("tolerance", _TOLERANCE)
        # Cases of statistics state theirs in words; what compares them says it in numbers.
        self.rtol, self.atol = float(stated.get("rtol", 0.0)), float(stated.get("atol", 0.0))
        self._seen: set[str] = set()
        self._norms_seen = False

    @property
    def worst(self) -> Line:
        """The line that used most of its tolerance; of equals, the one with the largest error."""
        return max(self.lines, key=lambda line: (line.used, line.error))

    @property
    def passed(self) -> bool:
        """Whether something was compared and all of it agrees."""
        return bool(self.lines) and all(line.passed for line in self.lines)

    def output(self, name: str, ours: Tensor, *, label: str = "") -> None:
        """Compare with the output `name`: forward values by rtol and atol, gradients by their largest entry.

        What the case does not store is passed over; what it stores and is not compared fails in `finish`.
        """
        if name not in self.case.outputs:
            return
        self._seen.add(name)
        if self.case.recording is not None:
            self.case.recording.outputs.setdefault(name, ours.detach().float().contiguous().clone())
            return
        expected = self.case.outputs[name].double()
        rounding = _ROUNDING * self.case.facts.get("outputs", {}).get(name, {}).get("fp32_vs_fp64_max_abs", 0.0)
        if _parameter(name) is not None:
            allowed = torch.full_like(expected, self.rtol * float(expected.abs().max()))
        else:
            allowed = self.atol + self.rtol * expected.abs()
        self._add(label or name, ours, expected, allowed.clamp(min=rounding))

    def numbers(self, name: str, ours: Mapping[str, float], expected: Mapping[str, float], floor: float) -> None:
        """Compare a group of named numbers, each to rtol of itself plus `floor`; the names must be the same."""
        missing, extra = sorted(expected.keys() - ours.keys()), sorted(ours.keys() - expected.keys())
        if missing or extra:
            self.lines.append(Line(name, float("inf"), float("inf"), f"missing {missing[:3]}, unknown {extra[:3]}"))
            return
        keys = sorted(expected)
        wanted = torch.tensor([expected[key] for key in keys], dtype=torch.float64)
        found = torch.tensor([ours[key] for key in keys], dtype=torch.float64)
        self._add(f"{name} ({len(keys)} numbers)", found, wanted, floor + self.rtol * wanted.abs())

    def tensor(self, name: str, ours: Tensor, expected: Tensor) -> None:
        """Compare with a tensor that is no output of the case, such as a fixed table among its weights."""
        expected = expected.double()
        self._add(name, ours, expected, self.atol + self.rtol * expected.abs())

    def statistic(self, name: str, ours: Tensor, expected: Tensor, allowed: float) -> None:
        """Compare a mean over random draws, to an absolute difference."""
        self._seen.add(name)
        expected = expected.double()
        self._add(name, ours, expected, torch.full_like(expected, allowed))

    def leave_out(self, name: str, reason: str) -> None:
        """Say that an output is not compared, and why."""
        self._seen.add(name)
        self.left_out.append(f"{name} ({reason})")

    def gradients(self, gradients: Mapping[str, Tensor]) -> None:
        """Compare gradients under the original names: whole ones where stored, and the norm of each."""
        self._norms_seen = True
        for name in self.case.outputs:
            found = gradients.get(_parameter(name) or "")
            if found is not None:
                self.output(name, found)
        ours = {key: float(value.double().norm()) for key, value in gradients.items()}
        if self.case.recording is not None:
            self.case.recording.norms.update(ours)
            return
        norms = self.case.facts["grad_l2_norms"]
        # A parameter that nothing reaches has no gradient here and may have one of zeros there.
        ours |= {key: 0.0 for key, norm in norms.items() if norm == 0.0 and key not in ours}
        self.numbers("grad_l2_norms", ours, norms, floor=_NORM_FLOOR * self.rtol * max(norms.values()))

    def finish(self) -> Comparison:
        """Count what nothing was compared with, and no reason given for, as outside tolerance."""
        for name in sorted(self.case.outputs.keys() - self._seen):
            self.lines.append(Line(name, float("inf"), float("inf"), "never compared, and no reason given"))
        if self.case.facts.get("grad_l2_norms") and not self._norms_seen:
            self.lines.append(Line("grad_l2_norms", float("inf"), float("inf"), "never compared"))
        return self

    def _add(self, name: str, ours: Tensor, expected: Tensor, allowed: Tensor) -> None:
        ours = ours.detach().double().cpu()
        if ours.shape != expected.shape:
            shapes = f"shape {tuple(ours.shape)}, expected {tuple(expected.shape)}"
            self.lines.append(Line(name, float("inf"), float("inf"), shapes))
            return
        # Infinite values may be meant; the same ones do not differ.
        error = torch.where(ours == expected, 0.0, (ours - expected).abs())
        # A NaN counts as outside; an exact hit within, whatever is allowed.
        used = torch.where(error == 0, 0.0, error / allowed).nan_to_num(nan=float("inf"), posinf=float("inf"))
        self.lines.append(Line(name, float(error.max()), float(used.max())))
