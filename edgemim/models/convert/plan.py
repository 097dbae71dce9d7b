"""What becomes of each tensor of a published checkpoint: where it goes and in which layout, or why it stays behind."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from edgemim.errors import UserError

ENCODER = "encoder.vit."
CLASSIFIER = "classifier."


def _same(value: Tensor) -> Tensor:
    return value


@dataclass(frozen=True)
class Layout:
    """How a tensor's numbers are moved: `into` our layout, and `back` to the original one (for gradients)."""

    name: str = ""
    into: Callable[[Tensor], Tensor] = _same
    back: Callable[[Tensor], Tensor] = _same


AS_IS = Layout()
TRANSPOSED = Layout("transposed", lambda value: value.T, lambda value: value.T)


@dataclass(frozen=True)
class Move:
    """A tensor that is used. Names below `ENCODER` are timm's of the encoder, below `CLASSIFIER` those of a head; all
    others are names in the `MaskedImageModel` that the method's own configuration builds."""

    name: str
    layout: Layout = AS_IS


@dataclass(frozen=True)
class Drop:
    """A tensor that no part of ours takes, and why."""

    reason: str


Rule = Callable[[str], Move | Drop | None]


@dataclass(frozen=True)
class Plan:
    """A step for every key of a checkpoint."""

    steps: dict[str, Move | Drop]

    @property
    def moves(self) -> dict[str, Move]:
        """The tensors that are used."""
        return {key: step for key, step in self.steps.items() if isinstance(step, Move)}

    def state(self, weights: Mapping[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
        """Tensors in our layout under our names below `prefix`, which is taken off."""
        return {
            move.name.removeprefix(prefix): move.layout.into(weights[key])
            for key, move in self.moves.items()
            if move.name.startswith(prefix)
        }

    def gradients(self, parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
        """Gradients of named parameters, where they have one, under the original names and in the original layout."""
        found = {name: value.grad for name, value in parameters if value.grad is not None}
        return {key: move.layout.back(found[move.name]) for key, move in self.moves.items() if move.name in found}


def make_plan(weights: Mapping[str, Tensor], rule: Rule, family: str) -> Plan:
    """Ask a family's rule about each key. Raises UserError naming the keys that it does not know."""
    steps: dict[str, Move | Drop] = {}
    unknown = []
    for key in weights:
        step = rule(key)
        if step is None:
            unknown.append(key)
        else:
            steps[key] = step
    if unknown:
        more = f" and {len(unknown) - 4} more" if len(unknown) > 4 else ""
        raise UserError(f"holds {', '.join(unknown[:4])}{more}, which no part of a {family} checkpoint is named")
    return Plan(steps)


def swap_halves(table: Tensor) -> Tensor:
    """A sine-cosine position table with the halves of its channels exchanged: row first for column first, and back."""
    return torch.cat(table.chunk(2, dim=-1)[::-1], dim=-1)
