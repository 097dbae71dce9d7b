"""One process or many: torchrun's environment, agreement between ranks, and signals that ask for a save."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import FrameType
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from edgemim.errors import NoGpu, UserError

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among its peers, and the device that it computes on."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether any rank raised the flag; all ranks get the same answer. A CPU collective: the GPU is not waited for."""
        if self.size == 1:
            return flag
        value = torch.tensor([int(flag)])
        dist.all_reduce(value, op=dist.ReduceOp.MAX)
        return bool(value.item())

    def gather(self, items: list[T]) -> list[list[T]]:
        """Each rank's list, on every rank (for small, rare things: the lists travel pickled)."""
        if self.size == 1:
            return [items]
        if not self.any(bool(items)):
            return []
        parts: list[list[T]] = [[] for _ in range(self.size)]
        dist.all_gather_object(parts, items)
        return parts

    def mean_(self, tensor: Tensor) -> Tensor:
        """Mean over ranks, in place."""
        if self.size > 1:
            dist.all_reduce(tensor)
            tensor /= self.size
        return tensor

    def barrier(self) -> None:
        """Wait until every rank is here."""
        if self.size > 1:
            self.any(False)


def restarted_by_agent() -> bool:
    """Whether torchrun's elastic agent started this process again after a failure: then it resumes by itself."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0


@contextmanager
def open_world(device: str) -> Iterator[World]:
    """Join the process group that torchrun describes, or be alone; leave it at the end.

    Raises:
        NoGpu: if a CUDA device was asked for and none is usable.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chosen = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        yield World(0, 1, chosen)
        return
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=timedelta(minutes=30))
    try:
        yield World(rank, size, chosen)
    finally:
        dist.destroy_process_group()


def pick_device(name: str, local_rank: int = 0) -> torch.device:
    """'auto' takes a GPU where one is usable. Raises NoGpu or UserError."""
    usable = torch.cuda.is_available()
    if name == "auto":
        name = "cuda" if usable else "cpu"
    if name not in ("cpu", "cuda"):
        raise UserError(f"unknown device '{name}'; --device is auto, cpu or cuda")
    if name == "cpu":
        return torch.device("cpu")
    if not usable:
        raise NoGpu("no usable CUDA device; give --device cpu, or check the driver")
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


class StopSignal:
    """Remembers that SIGTERM, SIGUSR1 or Ctrl-C arrived; the loop saves at its next step boundary.

    A second Ctrl-C is not waited for: it interrupts at once.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignal:
        for name in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            self._before[name] = signal.signal(name, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for name, handler in self._before.items():
            signal.signal(name, handler)  # pyright: ignore[reportArgumentType]

    def _note(self, number: int, _: FrameType | None) -> None:
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
