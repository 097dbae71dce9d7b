"""Worker processes under guard: none is lost unnoticed, none hangs for ever, none outlives its parent."""

from __future__ import annotations

import atexit
import functools
import os
import signal
import threading
import time
from collections.abc import Generator, Iterator
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

from edgemim.errors import EdgemimError

if TYPE_CHECKING:  # `data check` uses start_worker where there is no torch
    from torch.utils.data import DataLoader

POLL_S = 2
"""Seconds between two looks at the workers while the run waits for a batch."""
_IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


class WorkerError(EdgemimError):
    """A worker process died or gave nothing; the run can be resumed from its last checkpoint."""


def start_worker(worker_id: int = 0) -> None:
    """Set up a worker process: signals are the parent's to decide about, and its death is the worker's end.

    A scheduler sends SIGTERM or SIGUSR1 to the whole process group; the parent then still needs batches to reach the
    step at which it saves.
    """
    for number in _IGNORED:
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    # torch looks for its parent only between batches, and a worker stuck in one never gets there.
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def watched(loader: DataLoader, timeout_s: float) -> Generator[Any]:
    """Iterate over a loader (with workers, its own timeout must be POLL_S).

    Raises WorkerError naming the process id within seconds of a worker's death, and after `timeout_s` seconds without
    a batch.
    """
    if not loader.num_workers:
        yield from loader
        return
    batches = _start(loader)
    workers: list[BaseProcess] = list(batches._workers)  # pyright: ignore[reportAttributeAccessIssue]
    # Without this, multiprocessing's own exit hook would send a SIGTERM that is ignored, and wait for ever.
    kill = functools.partial(_kill, workers)
    atexit.register(kill)
    try:
        while True:
            try:
                batch = _next(batches, workers, timeout_s)
            except StopIteration:
                return
            except WorkerError:
                # Those left may be stuck; they hold nothing of value, and torch would wait for each.
                kill()
                raise
            yield batch
    finally:
        del batches  # its destructor asks the workers to end and waits a few seconds
        kill()
        atexit.unregister(kill)


def _start(loader: DataLoader) -> Iterator[Any]:
    """Start the workers without torch's SIGCHLD handler.

    That handler raises wherever the main thread happens to be, a checkpoint's writing included; here a dead worker is
    found when the next batch is asked for.
    """
    if threading.current_thread() is not threading.main_thread():
        return iter(loader)
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        return iter(loader)
    finally:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL if handler is None else handler)


def _next(batches: Iterator[Any], workers: list[BaseProcess], timeout_s: float) -> Any:
    waited_since = time.monotonic()
    while True:
        _refuse_dead(workers)
        try:
            return next(batches)
        except (RuntimeError, OSError, EOFError) as error:
            if not isinstance(error, RuntimeError):
                _await_a_death(workers)
            _refuse_dead(workers)
            if not str(error).startswith("DataLoader timed out"):
                raise
            # The loader's state is untouched by its timeout, so that asking again goes on where it was.
            waited_s = time.monotonic() - waited_since
            if waited_s >= timeout_s:
                names = ", ".join(str(worker.pid) for worker in workers)
                raise WorkerError(
                    f"no batch for {waited_s:.0f} s from the data-loading workers (pid {names}): is the storage hanging? "
                    "Check it, then resume the run"
                ) from error


def _await_a_death(workers: list[BaseProcess], at_most_s: float = 5.0) -> None:
    """A connection to a worker broke: it is dying. Its files, its sentinel among them, close before it can be reaped."""
    deadline = time.monotonic() + at_most_s
    while all(worker.is_alive() for worker in workers) and time.monotonic() < deadline:
        time.sleep(0.02)


def _refuse_dead(workers: list[BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            continue
        raise WorkerError(
            f"data-loading worker (pid {worker.pid}) {_how_it_ended(worker.exitcode)} "
            "Use fewer workers or a smaller batch, then resume the run"
        )


def _how_it_ended(code: int | None) -> str:
    if code == -signal.SIGKILL:
        return "was killed (SIGKILL): out of memory?"
    if code == -signal.SIGBUS:
        return "was killed (SIGBUS): is the shared memory (/dev/shm) full?"
    if code is not None and code < 0:
        return f"was killed by {signal.Signals(-code).name}."
    return f"ended with code {code}."


def _kill(workers: list[BaseProcess]) -> None:
    for worker in workers:
        if worker.is_alive():
            worker.kill()  # SIGTERM is ignored there
            worker.join()
