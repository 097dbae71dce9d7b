"""The best of the weights that were measured on the way, and whether it is worth going on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


class BestWeights:
    """Keeps a copy of the weights with the highest figure; of equals, of the first.

    Attributes:
        step: when they were measured; 0 before the first figure.
        figure: theirs; None before the first.
        measured_at: the newest step that was measured.
        measured: how many were.
        unbeaten: how many were since the best.
        weights: the copy, on the CPU.
    """

    def __init__(self, patience: int | None = None) -> None:
        """With `patience`, so many figures in a row without a gain are enough."""
        self.patience = patience
        self.step = self.measured_at = self.measured = self.unbeaten = 0
        self.figure: float | None = None
        self.weights: dict[str, Tensor] = {}

    def note(self, step: int, figure: float, weights: Mapping[str, Tensor]) -> None:
        """Take in what was measured after `step`; a step that was taken in before counts once."""
        if step <= self.measured_at:
            return
        self.measured_at, self.measured, self.unbeaten = step, self.measured + 1, self.unbeaten + 1
        if self.figure is None or figure > self.figure:
            self.step, self.figure, self.unbeaten = step, figure, 0
            self.weights = {name: value.detach().to("cpu", copy=True) for name, value in weights.items()}

    @property
    def exhausted(self) -> bool:
        """Whether patience has run out."""
        return self.patience is not None and self.unbeaten >= self.patience

    def facts(self) -> dict[str, Any]:
        """What a checkpoint holds beside the weights."""
        names = ("step", "figure", "measured_at", "measured", "unbeaten")
        return {name: getattr(self, name) for name in names}

    def restore(self, facts: Mapping[str, Any], weights: Mapping[str, Tensor]) -> None:
        """Take over what `facts` gave and the weights that were kept."""
        for name, value in facts.items():
            setattr(self, name, value)
        self.weights = {name: torch.as_tensor(value) for name, value in weights.items()}
