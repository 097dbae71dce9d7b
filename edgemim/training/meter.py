"""Figures of a running training, summed on the device and read only when a line is due."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TypeVar

import torch
from torch import Tensor

from edgemim.training.distributed import World

BatchT = TypeVar("BatchT")


class Meter:
    """Sums figures on the device and reads them only when a line is due."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.images = self.total_images = 0
        self.total_seconds = self.total_wait = self._wait = 0.0
        self._reset()
        self._run = torch.zeros((), device=device)

    def _reset(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._bad = torch.zeros((), device=self._device)
        self._worst = torch.zeros((), device=self._device)
        self.images, self._wait, self._steps = 0, 0.0, 0
        self._since = time.monotonic()

    def wait_for(self, batches: Iterator[BatchT]) -> BatchT:
        """The next batch; the time it takes to come is data-wait."""
        started = time.monotonic()
        batch = next(batches)
        self._wait += time.monotonic() - started
        return batch

    def add(self, values: dict[str, Tensor], bad: Tensor) -> None:
        """Add a step's figures; a step that is not finite counts apart."""
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0) + torch.where(bad > 0, 0.0, value)
        self._run = (self._run + 1) * bad
        self._worst = torch.maximum(self._worst, self._run)
        self._bad = self._bad + bad
        self._steps += 1

    def read(self, world: World) -> tuple[dict[str, float], int]:
        """Means since the last line (one wait for the device), and the longest run of steps that were not finite."""
        names = list(self._sums)
        stacked = world.mean_(torch.stack([self._sums[name].float() for name in names]))
        *sums, bad, worst = torch.cat([stacked, torch.stack([self._bad, self._worst])]).tolist()
        seconds = max(time.monotonic() - self._since, 1e-9)
        figures = {name: value / max(self._steps - bad, 1) for name, value in zip(names, sums, strict=True)}
        figures |= {"images_per_s": self.images / seconds, "data_wait": self._wait / seconds, "nonfinite_steps": bad}
        self.total_images += self.images
        self.total_seconds += seconds
        self.total_wait += self._wait
        self._reset()
        return figures, int(worst)
