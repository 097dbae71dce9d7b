"""One-pass evaluation: a tracker starts from each sequence's first box and goes on to its end, sequences side by side."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from edgemim.edge.artifact import MANIFEST_NAME
from edgemim.edge.images import load_image
from edgemim.edge.tracking.results import write_got10k, write_pytracking
from edgemim.edge.tracking.sequences import Sequence as Truth
from edgemim.edge.tracking.sequences import SequenceError
from edgemim.edge.tracking.tracker import Tracker
from edgemim.errors import EdgemimError, UserError

_START_SCORE = 1.0


class Pass(NamedTuple):
    """One sequence tracked: boxes [n, 4], the first the given one; seconds of `init` and each `update`; scores [n]."""

    boxes: np.ndarray
    times_s: list[float]
    scores: list[float]


@dataclass(frozen=True)
class TrackerSource:
    """How a process opens its own tracker: an artifact's model, or a fine-tuned run in PyTorch."""

    folder: Path
    key: str = "onnx-fp32"
    runtime: str | None = None
    threads: int = 1

    @property
    def is_artifact(self) -> bool:
        """Whether the folder holds a manifest; else it is a run."""
        return (self.folder / MANIFEST_NAME).is_file()

    def open(self) -> Tracker:
        """Open it. Raises UserError, MissingLibrary or ModelRefused."""
        if self.is_artifact:
            tracker = Tracker.open(self.folder, self.key, runtime=self.runtime, threads=self.threads)
        else:
            # The only way to torch: the bridge, asked for where a run is evaluated.
            from edgemim.export.tracker_session import open_torch_tracker

            tracker = open_torch_tracker(self.folder, self.threads)
        tracker.warm_up()
        return tracker


@dataclass(frozen=True)
class Target:
    """Where results of a tracker go: two folders, one in each format."""

    pytracking: Path
    got10k: Path
    integers: bool = False

    def write(self, name: str, found: Pass) -> None:
        """Write both; PyTracking's last, for its file says that the sequence is finished."""
        write_got10k(self.got10k, name, found.boxes, found.times_s)
        write_pytracking(self.pytracking, name, found.boxes, found.times_s, found.scores, integers=self.integers)


def track_sequence(tracker: Tracker, truth: Truth) -> Pass:
    """Start from the first box and follow to the end. Images are decoded outside the times.

    Raises SequenceError that names sequence and frame: no box to start from, an image that cannot be read or changes size.
    """
    boxes, times_s, scores = [np.array(truth.init_box)], [], [_START_SCORE]
    for number, path in enumerate(truth.frames):
        try:
            image = load_image(path)
            began = time.perf_counter()
            if number == 0:
                tracker.init(image, truth.init_box)
            else:
                tracked = tracker.update(image)
                boxes.append(np.array(tracked.box))
                scores.append(tracked.score)
            times_s.append(time.perf_counter() - began)
        except UserError as error:
            raise SequenceError(f"sequence {truth.name}, frame {number + 1} of {len(truth.frames)}: {error}") from error
    return Pass(np.array(boxes), times_s, scores)


def no_motion(truth: Truth) -> Pass:
    """The baseline that anything must beat: the first box, repeated."""
    length = len(truth)
    return Pass(np.tile(np.array(truth.init_box), (length, 1)), [0.0] * length, [_START_SCORE] * length)


def run_passes(
    source: TrackerSource,
    truths: Sequence[Truth],
    target: Target,
    *,
    workers: int,
    on_done: Callable[[str], None],
) -> dict[str, str]:
    """Track and write every sequence; returns the sentences of those that broke off, the others are done all the same.

    Raises UserError if the tracker cannot be opened or a process dies.
    """
    faults: dict[str, str] = {}
    if workers == 1 or len(truths) <= 1:
        tracker = source.open()
        for truth in truths:
            _keep(faults, truth.name, _attempt(tracker, truth, target))
            on_done(truth.name)
        return faults
    context = multiprocessing.get_context("spawn")  # a forked process would share the runtime's dead thread pool
    pool = ProcessPoolExecutor(min(workers, len(truths)), context, initializer=_open_in_child, initargs=(source,))
    try:
        waiting = {pool.submit(_attempt_in_child, truth, target): truth.name for truth in truths}
        for future in as_completed(waiting):
            _keep(faults, waiting[future], future.result())
            on_done(waiting[future])
    except BrokenProcessPool:
        raise UserError(
            f"a process died while tracking (out of memory?); use fewer than {workers} --workers and go on with --resume"
        ) from None
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()  # a long sequence is not waited for
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    return faults


_opened: Tracker | EdgemimError | None = None
"""In a child: its tracker, or why there is none."""


def _open_in_child(source: TrackerSource) -> None:
    global _opened
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children
    # A child that waits for work does not notice by itself that its parent was killed.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    cv2.setNumThreads(source.threads)  # crops are resized by it
    try:
        _opened = source.open()
    except EdgemimError as error:
        _opened = error


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "called in a child"
    parent.join()
    os._exit(1)


def _attempt_in_child(truth: Truth, target: Target) -> str | None:
    if isinstance(_opened, EdgemimError):
        raise _opened
    assert _opened is not None, "the initializer ran"
    return _attempt(_opened, truth, target)


def _attempt(tracker: Tracker, truth: Truth, target: Target) -> str | None:
    """Track and write one sequence; the sentence if it broke off."""
    try:
        target.write(truth.name, track_sequence(tracker, truth))
    except SequenceError as error:
        return str(error)
    return None


def _keep(faults: dict[str, str], name: str, fault: str | None) -> None:
    if fault is not None:
        faults[name] = fault
