"""The one interface that the training loop knows: a batch goes in, a loss and metrics come out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor, nn


class BatchLike(Protocol):
    """What the loop needs of a batch; images and labels are whatever the objective takes."""

    keys: Tensor
    skipped: list[tuple[str, str]]

    @property
    def images(self) -> Any:
        """Pixels; of pairs, both crops."""
        ...

    @property
    def labels(self) -> Any:
        """What is to be learnt of them."""
        ...

    def to(self, device: torch.device) -> BatchLike:
        """The batch on another device."""
        ...


@dataclass(frozen=True)
class StepOutput:
    """Loss of a batch (a scalar that carries the gradient) and scalars worth logging, which the loop detaches."""

    loss: Tensor
    metrics: dict[str, Tensor] = field(default_factory=dict)


class Objective(nn.Module):
    """What is trained: methods and tasks are both one. `forward(images, keys, labels) -> StepOutput`."""

    @property
    def exported(self) -> nn.Module:
        """The part whose weights leave training."""
        raise NotImplementedError

    def begin_step(self, progress: float) -> None:
        """Called before each optimizer step, once however many parts it is computed in; here it does nothing.

        Args:
            progress: share of the run's steps that are done, 0 at the first.
        """
