"""One process or many: torchrun's environment, and agreement between ranks."""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from edgemim.errors import EdgemimError, NoGpu, UserError
from edgemim.training.signals import StopSignal

T = TypeVar("T")
_TIMEOUT = timedelta(minutes=30)


class PeerLost(EdgemimError):
    """Another process of the group ended, or cannot be reached; the run can go on from its last checkpoint."""


@dataclass(frozen=True)
class World:
    """This process among its peers, the device that it computes on, and whether it was asked to stop."""

    rank: int
    size: int
    device: torch.device
    stop: StopSignal = field(default_factory=StopSignal, compare=False)

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether any rank raised the flag; all ranks get the same answer. A CPU collective: the GPU is not waited for."""
        return self.any_of(flag)[0]

    def any_of(self, *flags: bool) -> list[bool]:
        """`any` of several flags, in one collective."""
        if self.size == 1:
            return list(flags)
        values = torch.tensor([int(flag) for flag in flags])
        dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return [bool(value) for value in values.tolist()]

    def on_main(self, function: Callable[[], T]) -> T:
        """Call a function on the main rank alone; every rank gets what it returns, or the EdgemimError that it raises.

        So a refusal is one sentence everywhere, and no rank acts on a file that it saw in another state.
        """
        if self.size == 1:
            return function()
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except EdgemimError as error:
                outcome[1] = error
        dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        return outcome[0]

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


def job_name() -> str | None:
    """What this process has in common with those that torchrun's agent started before it; None without an agent."""
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    # Without an id of its own (torchrun's default is 'none'), a job is its agent: the parent of this process.
    return f"{socket.gethostname()} {os.getppid()}" if run == "none" else run


@contextmanager
def open_world(device: str) -> Iterator[World]:
    """Join the process group that torchrun describes, or be alone; leave it at the end.

    Inside, SIGTERM, SIGUSR1 and Ctrl-C end the run at once, where no loop holds them up to save first.

    Raises:
        NoGpu: if a CUDA device was asked for and none is usable.
        PeerLost: if another process of the group ended too early.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    chosen = pick_device(device, int(os.environ.get("LOCAL_RANK", "0")))
    if size == 1:
        with StopSignal() as stop, stop.raising(True):
            yield World(0, 1, chosen, stop)
        return
    backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
    try:
        store, rank, size = next(dist.rendezvous("env://", rank, size, timeout=_TIMEOUT))
        store = dist.PrefixStore(agreed_name(store, rank, size), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=_TIMEOUT)
        try:
            with StopSignal() as stop, stop.raising(True):
                yield World(rank, size, chosen, stop)
        finally:
            dist.destroy_process_group()
    except RuntimeError as error:
        if not isinstance(error, dist.DistError) and "gloo" not in str(error).lower():
            raise
        # gloo puts a place in its own source before the reason, and advice behind it.
        reason = re.sub(r"^\[[^]]*\]\s*", "", str(error).splitlines()[0]).partition(". ")[0]
        raise PeerLost(
            f"process {rank} of {size} lost the others ({reason}); their own messages say why. "
            "torchrun --max-restarts N starts all anew, and --resume goes on by hand"
        ) from error


def agreed_name(store: dist.Store, rank: int, size: int) -> str:
    """A name that exactly the living processes of this attempt share, agreed on through their store.

    torchrun keeps one store over its restarts (pytorch issue 135712), and with it the addresses of dead processes: under
    a name of their own, the restarted ones do not find these. Restart counts would not do, they differ between machines.
    Each rank shows a fresh token and the hash of all tokens that it sees; equal hashes contain everybody's fresh one.

    Raises:
        PeerLost: if the others do not appear.
    """
    ranks = range(size)
    store.set(f"token/{rank}", uuid.uuid4().hex)
    deadline = time.monotonic() + _TIMEOUT.total_seconds()
    while time.monotonic() < deadline:
        tokens = b"".join(store.get(f"token/{other}") for other in ranks)
        name = hashlib.sha256(tokens).hexdigest()
        store.set(f"seen/{rank}", name)
        if all(store.get(f"seen/{other}").decode() == name for other in ranks):
            return name
        time.sleep(0.02)
    raise PeerLost(f"process {rank} of {size} waited {_TIMEOUT} in vain for the others; look at their messages")


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
