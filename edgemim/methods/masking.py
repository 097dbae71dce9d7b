"""Which patches are hidden, from each sample's own key: the same on every device, worker and rank count."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
import pydantic
import torch
from jaxtyping import Float, Int
from torch import Tensor

from edgemim.config import Config
from edgemim.errors import UserError
from edgemim.models.encoder import TokenMask
from edgemim.models.sizes import EncoderSize

_ASPECT = math.log(1 / 0.3)
_TRIES = 1000


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


class UnitMasking(Config):
    """Hides a random share of square units of several patches, as SimMIM does (arXiv 2111.09886, section 3.2)."""

    name: Literal["unit"] = "unit"
    """The kind of masking."""
    ratio: float = pydantic.Field(default=0.6, gt=0.0, lt=1.0)
    """Share of units that are hidden, rounded up."""
    unit: int = pydantic.Field(default=2, ge=1)
    """Side of a unit in patches (the paper: 32 pixels, 2 patches of 16)."""
    grid: tuple[int, int] = (14, 14)
    """Rows and columns of the patch grid."""

    def __call__(self, keys: Int[Tensor, " b"], tokens: int) -> TokenMask:
        """Mask whole units of the `tokens` patches for each key."""
        units = tokens // self.unit**2
        hidden = math.ceil(units * self.ratio)
        order = keyed_uniform(keys, units).argsort(dim=1, stable=True)
        coarse = torch.zeros(len(keys), units, dtype=torch.bool, device=keys.device).scatter(1, order[:, :hidden], True)
        rows, columns = (side // self.unit for side in self.grid)
        fine = coarse.view(-1, rows, columns).repeat_interleave(self.unit, 1).repeat_interleave(self.unit, 2).flatten(1)
        visible = fine.to(torch.uint8).argsort(dim=1, stable=True)[:, : tokens - hidden * self.unit**2]
        return TokenMask(fine, visible)

    def check(self, tokens: int) -> None:
        """Raises UserError if units do not fill the grid, or all of them would be hidden."""
        rows, columns = self.grid
        if rows % self.unit or columns % self.unit:
            raise UserError(f"units of {self.unit} patches do not fill a grid of {rows} x {columns}; change 'unit'")
        units = tokens // self.unit**2
        if math.ceil(units * self.ratio) >= units:
            raise UserError(f"mask ratio {self.ratio} hides all of {units} units; lower 'mask_ratio' or 'unit'")


class BlockMasking(Config):
    """Hides rectangles, as BEiT does (arXiv 2106.08254, algorithm 1) and MaskFeat after it, up to an exact number.

    A rectangle of random area and aspect ratio 0.3 ... 1 / 0.3 is hidden if it hides something new and no more than is
    left, until the number is reached. As published, none touches the last row or column. Drawn on the CPU, from each
    sample's key alone.
    """

    name: Literal["block"] = "block"
    """The kind of masking."""
    ratio: float = pydantic.Field(default=0.4, gt=0.0, lt=1.0)
    """Share of patches that are hidden."""
    min_block: int | None = pydantic.Field(default=None, ge=1)
    """Patches of the smallest rectangle; default 15 of 196, in proportion."""
    grid: tuple[int, int] = (14, 14)
    """Rows and columns of the patch grid."""

    def __call__(self, keys: Int[Tensor, " b"], tokens: int) -> TokenMask:
        """Mask int(tokens * ratio) patches for each key."""
        count = int(tokens * self.ratio)
        smallest = self.min_block or max(1, round(tokens * 15 / 196))
        masked = _block_masks(keys, self.grid, count, smallest)  # pyright: ignore[reportCallIssue] (hidden by the decorator)
        visible = masked.to(torch.uint8).argsort(dim=1, stable=True)[:, : tokens - count]
        return TokenMask(masked.to(keys.device), visible.to(keys.device))

    def check(self, tokens: int) -> None:
        """Raises UserError if nothing, or everything, of `tokens` patches would be hidden."""
        visible_count(tokens, self.ratio)
        if int(tokens * self.ratio) < 1:
            raise UserError(f"mask ratio {self.ratio} hides none of {tokens} patches; raise 'mask_ratio'")


@dataclass(frozen=True)
class MaskingOfUnits:
    """Hides and shows square units of patches as another masking does single patches (Hiera's mask units).

    Attributes:
        masking: of the units.
        unit: side of a unit in patches.
        grid: rows and columns of the patch grid.
    """

    masking: Masking
    unit: int
    grid: tuple[int, int]

    @property
    def ratio(self) -> float:
        """Share of units that are hidden."""
        return self.masking.ratio

    def __call__(self, keys: Int[Tensor, " b"], tokens: int) -> TokenMask:
        """Mask `tokens` patches for each key, whole units at once."""
        return spread_over_patches(self.masking(keys, tokens // self.unit**2), self.unit, self.grid)

    def check(self, tokens: int) -> None:
        """Raises UserError if no unit would stay visible."""
        self.masking.check(tokens // self.unit**2)


def masking_for(masking: Masking, size: EncoderSize) -> Masking:
    """A masking in an encoder's mask units. Raises UserError on one that is made of patches in their own way."""
    if size.unit == 1:
        return masking
    if not isinstance(masking, RandomMasking):
        raise UserError(
            f"encoder {size.name} hides whole mask units of {size.unit} x {size.unit} patches, and masking "
            f"{getattr(masking, 'name', type(masking).__name__)} has others; take masking random"
        )
    return MaskingOfUnits(masking, size.unit, size.grid)


def spread_over_patches(mask: TokenMask, unit: int, grid: tuple[int, int]) -> TokenMask:
    """A mask of square units of patches as one of patches."""
    coarse = mask.masked.view(-1, grid[0] // unit, grid[1] // unit)
    fine = coarse.repeat_interleave(unit, 1).repeat_interleave(unit, 2).flatten(1)
    count = mask.visible.shape[1] * unit**2
    return TokenMask(fine, fine.to(torch.uint8).argsort(dim=1, stable=True)[:, :count])


@torch.compiler.disable
def _block_masks(keys: Int[Tensor, " b"], grid: tuple[int, int], count: int, smallest: int) -> Tensor:
    # A compiled model calls it as it is: Python's own generators are no graph.
    rows = [block_mask(random.Random(key), grid, count, smallest) for key in keys.tolist()]
    return torch.from_numpy(np.stack(rows)).flatten(1)


def block_mask(generator: random.Random, grid: tuple[int, int], count: int, smallest: int) -> np.ndarray:
    """One mask, bool [rows, columns], with `count` patches hidden by rectangles of `smallest` patches or more."""
    rows, columns = grid
    mask = np.zeros(grid, dtype=bool)
    left = count
    for _ in range(_TRIES):
        if not left:
            return mask
        area = generator.uniform(smallest, left)
        aspect = math.exp(generator.uniform(-_ASPECT, _ASPECT))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if not (0 < height < rows and 0 < width < columns):
            continue
        top, start = generator.randrange(rows - height), generator.randrange(columns - width)
        block = mask[top : top + height, start : start + width]
        fresh = height * width - int(block.sum())
        if 0 < fresh <= left:
            block[:] = True
            left -= fresh
    # A grid too small for rectangles: single patches fill up.
    free = np.flatnonzero(~mask)
    mask.flat[generator.sample(free.tolist(), left)] = True
    return mask


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
