"""A moving average of the weights that leaves out steps whose gradient was not finite."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class MovingAverage(AveragedModel):
    """torch's `AveragedModel` with an exponential average: decay * average + (1 - decay) * weights."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        super().__init__(model, multi_avg_fn=self._blend)
        self._share = 1 - decay

    def update(self, model: nn.Module, bad: Tensor) -> None:
        """Take a step's weights in; `bad`, a scalar on the device, is 1 where the step counts for nothing."""
        self._weight = self._share * (1 - bad)
        self.update_parameters(model)

    def _blend(self, averaged: Any, current: Any, _: Any) -> None:
        # As get_ema_multi_avg_fn does, with a weight that lives on the device.
        change = torch._foreach_sub(current, averaged)
        torch._foreach_mul_(change, self._weight)
        torch._foreach_add_(averaged, change)
