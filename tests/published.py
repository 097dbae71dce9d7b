"""Weights under published names for tests: those of the small cases kept beside the golden runners."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

CASES = Path(__file__).parent / "golden" / "cases"


def weights_of(case: str) -> dict[str, Tensor]:
    """The original state dict of a small case."""
    return load_file(CASES / case / "weights.safetensors")
