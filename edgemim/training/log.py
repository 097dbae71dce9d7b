"""What a run tells while it works: JSON lines, TensorBoard and one progress line with rate, ETA and data-wait."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn


class MetricsLog:
    """Appends to `metrics.jsonl` and TensorBoard; a log that cannot be written never stops the training."""

    def __init__(self, folder: Path, *, resume_step: int = 0, enabled: bool = True) -> None:
        self._path = folder / "metrics.jsonl"
        self._enabled = enabled
        self._board: Any = None
        if not enabled:
            return
        if resume_step:
            self._forget_after(resume_step)
        try:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=resume_step or None)
        except (ImportError, OSError) as error:
            warnings.warn(f"TensorBoard log is off: {error}", stacklevel=2)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Append one line of figures of a step."""
        if not self._enabled:
            return
        try:
            with open(self._path, "a") as file:
                file.write(json.dumps({"step": step, **values}) + "\n")
            if self._board is not None:
                for name, value in values.items():
                    self._board.add_scalar(name, value, step)
        except OSError as error:
            warnings.warn(f"metrics are not logged: {error}", stacklevel=2)

    def _forget_after(self, step: int) -> None:
        """Drop lines of steps that will be done again, so that a resumed log reads like an undisturbed one."""
        try:
            lines = self._path.read_text().splitlines()
            kept = [line for line in lines if _step_of(line) <= step]
            self._path.write_text("".join(line + "\n" for line in kept))
        except OSError:
            return

    def close(self) -> None:
        """Flush what is buffered."""
        if self._board is not None:
            self._board.close()


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
