"""What tracking trains on: a place in a file, a pair of them, and a batch of their crops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from edgemim.edge.tracking.boxes import Box


class Shot(NamedTuple):
    """One picture of a target."""

    path: Path
    box: Box
    """In pixels of the upright picture."""


class ShotPair(NamedTuple):
    """Two pictures of the same target, the search region's at the template's time or later; maybe the same picture."""

    template: Shot
    search: Shot


class PairCrops(NamedTuple):
    """One sample as the network sees it."""

    template: np.ndarray
    """uint8 [3, z, z]."""
    search: np.ndarray
    """uint8 [3, s, s]."""
    template_box: np.ndarray
    """float32 [4]: left, top, width, height over the crop's side."""
    search_box: np.ndarray
    """float32 [4], likewise; it may reach beyond the crop."""


class PairLabels(NamedTuple):
    """What belongs to a batch of search regions."""

    template: Tensor
    """uint8 [b, 3, z, z]."""
    template_box: Tensor
    """float32 [b, 4]: left, top, width, height over the template crop's side."""
    search_box: Tensor
    """float32 [b, 4], over the search crop's side."""


@dataclass
class PairBatch:
    """A batch of pairs; pixels stay uint8 until the device normalises them.

    The loop hands an objective `images` (the search regions), `keys` and `labels` (all else).
    """

    template: Tensor
    """uint8 [b, 3, z, z]."""
    search: Tensor
    """uint8 [b, 3, s, s]."""
    template_box: Tensor
    """float32 [b, 4]: left, top, width, height over the crop's side."""
    search_box: Tensor
    """float32 [b, 4], likewise."""
    indices: Tensor
    """int64 [b], number of the pair in its epoch."""
    keys: Tensor
    """int64 [b], the source of each pair's randomness."""
    skipped: list[tuple[str, str]] = field(default_factory=list)
    """(path, reason) of each file that could not be read."""

    def __len__(self) -> int:
        return len(self.search)

    @property
    def images(self) -> Tensor:
        """The search regions."""
        return self.search

    @property
    def labels(self) -> PairLabels:
        """The templates and both boxes."""
        return PairLabels(self.template, self.template_box, self.search_box)

    def to(self, device: torch.device | str, non_blocking: bool = True) -> PairBatch:
        """The same batch with its tensors on `device`."""
        return self._map(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> PairBatch:
        """The same batch in page-locked memory, from where a copy to the GPU does not block."""
        return self._map(Tensor.pin_memory)

    def part(self, count: int) -> PairBatch:
        """The first `count` pairs."""
        return self._map(lambda tensor: tensor[:count])

    def _map(self, change: Callable[[Tensor], Tensor]) -> PairBatch:
        tensors = (self.template, self.search, self.template_box, self.search_box, self.indices, self.keys)
        return PairBatch(*map(change, tensors), skipped=self.skipped)


def collect_pairs(
    crops: list[PairCrops], shown: list[int], keys: list[int], skipped: list[tuple[str, str]]
) -> PairBatch:
    """Stack samples into a batch."""
    parts = [torch.from_numpy(np.stack(part)) for part in zip(*crops, strict=True)]
    numbers = [torch.tensor(values, dtype=torch.int64) for values in (shown, keys)]
    return PairBatch(*parts, *numbers, skipped=skipped)
