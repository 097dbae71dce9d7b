"""SIGTERM, SIGUSR1 and Ctrl-C: a training saves at its next step boundary, anything else ends at once."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from types import FrameType

from edgemim.errors import EdgemimError, Interrupted, SavedOnSignal

_ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StopSignal:
    """Remembers that a signal asked the run to stop; a context manager that takes the signals over.

    While `raising(True)` holds, the first one also raises at once: right where no step is under way and nothing is lost
    by leaving (reading a folder, evaluating). A second Ctrl-C is never waited for: it interrupts.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.active = False
        self._raises = False
        self._before: dict[signal.Signals, object] = {}

    def __enter__(self) -> StopSignal:
        self.received = None
        # Python allows handlers in the main thread alone; a run in another one is stopped by whoever started it.
        if threading.current_thread() is threading.main_thread():
            self.active = True
            for name in _ASKING:
                self._before[name] = signal.signal(name, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self.active = False
        for name, handler in self._before.items():
            signal.signal(name, handler)  # pyright: ignore[reportArgumentType]
        self._before.clear()

    @contextmanager
    def raising(self, at_once: bool) -> Iterator[None]:
        """Inside, a signal raises SavedOnSignal or Interrupted at once (or, given False, is only remembered).

        One that was remembered raises where raising begins, or begins again.
        """
        before, self._raises = self._raises, at_once
        try:
            self._raise_if_due()
            yield
        finally:
            self._raises = before
        self._raise_if_due()

    @contextmanager
    def noting(self) -> Iterator[None]:
        """Inside, signals are only remembered; they are taken over here if nobody has done so."""
        with nullcontext() if self.active else self, self.raising(False):
            yield

    def _raise_if_due(self) -> None:
        if self._raises and self.received is not None:
            message = f"stopped by {self.received.name} before the end; give the same command with --resume to go on"
            raise stopped(message, interrupted=self.received == signal.SIGINT)

    def _note(self, number: int, _: FrameType | None) -> None:
        first = self.received is None
        if number == signal.SIGINT and self.received == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = signal.Signals(number)
        if first:  # a second one must not disturb what the first has begun
            self._raise_if_due()


def stopped(message: str, *, interrupted: bool) -> EdgemimError:
    """The error that ends a stopped run: Interrupted (exit 130) after Ctrl-C, else SavedOnSignal (exit 75)."""
    return Interrupted(message) if interrupted else SavedOnSignal(message)
