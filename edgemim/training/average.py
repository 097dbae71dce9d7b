"""A moving average of the weights that leaves out steps whose gradient was not finite."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """torch's `AveragedModel`, kept as decay * average + (1 - decay) * weights without a wait for the device.

    Its own `update_parameters` copies a count to the device at each step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model)
        self._share = 1 - decay
        self._begun = False

    @torch.no_grad()
    def update(self, model: nn.Module, bad: Tensor) -> None:
        """Take a step's weights in; `bad`, a scalar on the device, is 1 where the step counts for nothing."""
        averaged: list[Tensor] = [*self.module.parameters()]
        current: list[Tensor] = [*model.parameters()]
        if self._begun or bool(self.n_averaged > 0):  # a number on the host, asked once
            change = torch._foreach_sub(current, averaged)
            torch._foreach_mul_(change, self._share * (1 - bad))
            torch._foreach_add_(averaged, change)
        else:
            torch._foreach_copy_(averaged, current)
        for mine, theirs in zip(self.module.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)
        self._begun = True
        self.n_averaged += 1

    @contextmanager
    def standing_in(self, model: nn.Module) -> Iterator[None]:
        """Meanwhile the model holds the average; then its own weights again, in the storage where they were."""
        mine, theirs = ((*part.parameters(), *part.buffers()) for part in (self.module, model))

        def exchange() -> None:
            for one, other in zip(mine, theirs, strict=True):
                one.data, other.data = other.data, one.data

        exchange()
        try:
            yield
        finally:
            exchange()
