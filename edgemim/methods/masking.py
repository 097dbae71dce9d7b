"""Which patches are hidden, from each sample's own key: the same on every device, worker and rank count."""

from __future__ import annotations

from typing import Literal, Protocol

import pydantic
import torch
from jaxtyping import Float, Int
from torch import Tensor

from edgemim.config import Config
from edgemim.errors import UserError
from edgemim.models.encoder import TokenMask


class Masking(Protocol):
    """Hides patches: the same number in each row, from each sample's key alone."""

    @property
    def ratio(self) -> float:
        """Share of patches that are hidden."""
        ...

    def __call__(self, keys: Int[Tensor, " b"], tokens: int) -> TokenMask:
        """Mask `tokens` patches for each key."""
        ...

    def check(self, tokens: int) -> None:
        """Raises UserError if it cannot mask a grid of that many patches."""
        ...


class RandomMasking(Config):
    """Hides a random share of the patches, as MAE does (arXiv 2111.06377, section 3)."""

    name: Literal["random"] = "random"
    """The kind of masking."""
    ratio: float = pydantic.Field(default=0.75, ge=0.0, lt=1.0)
    """Share of patches that are hidden."""

    def __call__(self, keys: Int[Tensor, " b"], tokens: int) -> TokenMask:
        """Mask `tokens` patches for each key; int(tokens * (1 - ratio)) stay visible."""
        return mask_by_noise(keyed_uniform(keys, tokens), self.ratio)

    def check(self, tokens: int) -> None:
        """Raises UserError if no patch of `tokens` would stay visible."""
        visible_count(tokens, self.ratio)


def visible_count(tokens: int, ratio: float) -> int:
    """int(tokens * (1 - ratio)), as in the published code. Raises UserError if that is none."""
    kept = int(tokens * (1 - ratio))
    if kept < 1:
        raise UserError(f"mask ratio {ratio} leaves none of {tokens} patches visible; lower 'mask_ratio'")
    return kept


def mask_by_noise(noise: Float[Tensor, "b n"], ratio: float) -> TokenMask:
    """The `visible_count` tokens with the smallest noise stay visible. Raises UserError if that is none."""
    kept = visible_count(noise.shape[1], ratio)
    visible = noise.argsort(dim=1, stable=True)[:, :kept].sort(dim=1).values
    masked = torch.ones_like(noise, dtype=torch.bool).scatter(1, visible, False)
    return TokenMask(masked, visible)


def keyed_uniform(keys: Int[Tensor, " b"], count: int) -> Float[Tensor, "b count"]:
    """Uniform numbers in [0, 1) that depend on (key, position) alone, drawn on the keys' device without a generator.

    The finaliser of SplitMix64 (Steele, Lea, Flood 2014) over key + position * golden ratio; integer arithmetic, so
    every device gives the same bits. 24 bits of each hash become a float32.
    """
    position = torch.arange(1, count + 1, device=keys.device, dtype=torch.int64)
    x = keys[:, None] + position[None] * _signed(0x9E3779B97F4A7C15)
    x = (x ^ _shift(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shift(x, 27)) * _signed(0x94D049BB133111EB)
    x = x ^ _shift(x, 31)
    return _shift(x, 40).float() / 2**24


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch's own keeps the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _signed(value: int) -> int:
    """A 64-bit pattern as torch's signed integer."""
    return value - (1 << 64) if value >> 63 else value
