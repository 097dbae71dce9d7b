"""What a run tells while it works: JSON lines, TensorBoard and one progress line with rate, ETA and data-wait."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import time
import warnings
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from edgemim.errors import UserError
from edgemim.run import write_text


class MetricsLog:
    """Appends to `metrics.jsonl` and TensorBoard; a log that cannot be written never stops the training."""

    def __init__(self, folder: Path, *, resume_step: int = 0, enabled: bool = True) -> None:
        self._path = folder / "metrics.jsonl"
        self._enabled = enabled
        self._board: _Board | None = None
        if not enabled:
            return
        again = self._path.exists()
        if again:
            self._forget_after(resume_step)
        try:
            self._board = _Board(folder / "tensorboard", purge_from=resume_step + 1 if again else None)
        except (ImportError, OSError) as error:
            warnings.warn(f"TensorBoard log is off: {error}", stacklevel=2)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line of figures of a step."""
        if not self._enabled:
            return
        try:
            _append(self._path, (json.dumps({"step": step, **values}) + "\n").encode())
        except OSError as error:
            warnings.warn(f"metrics are not logged: {error}", stacklevel=2)
        try:
            if self._board is not None:
                self._board.write(step, values)
        except OSError as error:
            self.close()
            warnings.warn(f"TensorBoard log is off: {error}", stacklevel=2)

    def _forget_after(self, step: int) -> None:
        """Drop lines of steps that will be done again, so that a resumed log reads like an undisturbed one."""
        try:
            lines = self._path.read_text().splitlines()
            write_text(self._path, "".join(line + "\n" for line in lines if _step_of(line) <= step))
        except (OSError, UserError) as error:
            warnings.warn(f"metrics of steps after {step} stay in the log: {error}", stacklevel=2)

    def close(self) -> None:
        """Close the files."""
        if self._board is not None:
            self._board.close()
        self._board = None


class _Board:
    """TensorBoard's event file, made of its own records but written at once.

    The thread of its usual writer ends with a traceback on a full disk, and is no thing to have around a fork.
    """

    def __init__(self, folder: Path, purge_from: int | None) -> None:
        from tensorboard.compat.proto.event_pb2 import Event, SessionLog  # pyright: ignore[reportAttributeAccessIssue]
        from tensorboard.summary.writer.record_writer import RecordWriter
        from torch.utils.tensorboard.summary import scalar

        self._event, self._scalar = Event, scalar
        folder.mkdir(parents=True, exist_ok=True)
        name = f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}.{os.getpid()}"
        self._file = open(folder / name, "wb")  # noqa: SIM115 (open as long as the run)
        self._records = RecordWriter(self._file)
        self._put(file_version="brain.Event:2")
        if purge_from is not None:
            self._put(step=purge_from, session_log=SessionLog(status=SessionLog.START))

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to the curve of each figure. Raises OSError."""
        for name, value in values.items():
            self._put(step=step, summary=self._scalar(name, value))
        self._records.flush()

    def _put(self, **content: Any) -> None:
        self._records.write(self._event(wall_time=time.time(), **content).SerializeToString())

    def close(self) -> None:
        """Close the file, whether or not its end can still be written."""
        with suppress(OSError):
            self._file.close()


def _append(path: Path, line: bytes) -> None:
    """Append a line wholly or not at all. Raises OSError."""
    with open(path, "ab", buffering=0) as file:
        end = file.tell()
        if file.write(line) < len(line):
            file.truncate(end)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


def _step_of(line: str) -> float:
    try:
        return json.loads(line)["step"]
    except (ValueError, KeyError, TypeError):
        return float("inf")


class ProgressLine:
    """A bar on a terminal, a line every now and then elsewhere: epoch, loss, images/s, data-wait, time left."""

    def __init__(self, total_steps: int, start_step: int, *, label: str, enabled: bool, every_s: float = 10.0) -> None:
        self._total, self._label, self._enabled, self._every_s = total_steps, label, enabled, every_s
        self._started = self._last_line = time.monotonic()
        self._start_step = start_step
        self._bar: Progress | None = None
        if enabled and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn(label), BarColumn(), TextColumn("{task.completed}/{task.total}"), TextColumn("{task.fields[facts]}"),
                TimeRemainingColumn(), console=Console(stderr=True),
            )  # fmt: skip
            self._task = self._bar.add_task(label, total=total_steps, completed=start_step, facts="")
            self._bar.start()

    def update(self, step: int, facts: str) -> None:
        """Show that `step` steps are done, and the newest figures."""
        if self._bar is not None:
            self._bar.update(self._task, completed=step, facts=facts)
            return
        now = time.monotonic()
        if not self._enabled or (now - self._last_line < self._every_s and step < self._total):
            return
        self._last_line = now
        left_s = (now - self._started) / max(step - self._start_step, 1) * (self._total - step)
        print(f"{self._label} {step}/{self._total}  {facts}  ETA {_clock(left_s)}", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Leave the terminal as it was."""
        if self._bar is not None:
            self._bar.stop()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
