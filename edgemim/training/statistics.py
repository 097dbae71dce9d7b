"""Running statistics of batch norms: a forward pass changes them itself, so a bad step must be taken back."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class RunningStatistics:
    """The means and variances that a module's batch norms keep."""

    def __init__(self, module: nn.Module) -> None:
        found = (getattr(part, name, None) for part in module.modules() for name in ("running_mean", "running_var"))
        self._buffers = [buffer for buffer in found if isinstance(buffer, Tensor)]
        self._before: list[Tensor] = []

    def remember(self) -> None:
        """Note them as they are, before the forward pass."""
        self._before = [buffer.clone() for buffer in self._buffers]

    def take_back(self, bad: Tensor) -> None:
        """Where `bad`, a scalar on the device, is 1: as they were noted."""
        for buffer, value in zip(self._buffers, self._before, strict=True):
            buffer.copy_(torch.where(bad > 0, value, buffer))
