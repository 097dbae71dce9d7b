"""Runs several small trainings at a time, one thread each; a finished one is not run again, a stopped one resumed."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Hashable, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from edgemim.commands.finetune import FinetuneConfig, finetune
from edgemim.commands.pretrain import PretrainConfig, pretrain
from edgemim.errors import EdgemimError, Interrupted
from edgemim.run import read_record
from edgemim.training.recipe import changed_settings

Key = TypeVar("Key", bound=Hashable)


@dataclass(frozen=True)
class Job:
    """One training, with its name for people; its configuration names the folder."""

    name: str
    config: PretrainConfig | FinetuneConfig

    @property
    def folder(self) -> Path:
        """Where it writes."""
        assert self.config.out is not None
        return self.config.out

    @property
    def log(self) -> Path:
        """Where what it prints goes: beside its folder, which it may have to empty."""
        return self.folder.with_name(f"{self.folder.name}.log")


class JobPool:
    """Runs jobs, so many at a time, in processes that live until the pool is left (a new one takes seconds to start).

    What a training prints goes to FOLDER.log. Results do not depend on the number of processes: each has one thread.
    """

    def __init__(self, processes: int) -> None:
        # Spawned, not forked: torch's thread pools do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(processes, context, _start, (os.getpid(),))

    def __enter__(self) -> JobPool:
        return self

    def __exit__(self, *_: object) -> None:
        # After an error or Ctrl-C no further job starts; those that run save what they have.
        self._pool.shutdown(wait=True, cancel_futures=True)

    def run(self, jobs: Mapping[Key, Job]) -> dict[Key, dict[str, Any]]:
        """Results of all jobs, in the order given; one that came to its end before is not run again.

        Raises:
            EdgemimError: of the first job that fails, with the job's name; what others finished is kept.
        """
        results = {key: found for key, job in jobs.items() if (found := finished(job)) is not None}
        if results:
            print(f"{len(results)} of {len(jobs)} trainings are there already", flush=True)
        started = time.monotonic()
        pending = {self._pool.submit(run_job, job): key for key, job in jobs.items() if key not in results}
        for future in as_completed(pending):
            job = jobs[pending[future]]
            found = results[pending[future]] = _result(future, job)
            minutes = (time.monotonic() - started) / 60
            print(f"[{len(results)}/{len(jobs)}, {minutes:.1f} min] {job.name}: {_figure(found)}", flush=True)
        return {key: results[key] for key in jobs}


def finished(job: Job) -> dict[str, Any] | None:
    """The results of an earlier run of the same job that came to its end, or None."""
    record = read_record(job.folder)
    if record.get("status") != "done" or not (job.folder / "model" / "model.json").is_file():
        return None
    if changed_settings(record.get("config", {}), job.config.model_dump(mode="json")):
        return None
    return record["results"]


def _result(future: Future[dict[str, Any]], job: Job) -> dict[str, Any]:
    try:
        return future.result()
    except BrokenProcessPool as error:
        raise EdgemimError(
            f"{job.name}: its process was killed (out of memory? then --processes 1); start again to go on"
        ) from error
    except EdgemimError as error:
        raise type(error)(f"{job.name}: {error} (log: {job.log})") from error


def _figure(results: Mapping[str, Any]) -> str:
    if "top1" in results:
        return f"top-1 {results['top1']:.1f} %"
    return f"{results['images_per_s']:.0f} images/s"


class _Worker:
    """What a worker process knows about Ctrl-C, which the terminal sends to it as well as to the quick start."""

    busy = False
    stopped = False

    @classmethod
    def note(cls, *_: object) -> None:
        """Remember the signal; between two jobs there is nothing to interrupt. (A training has a handler of its own.)"""
        cls.stopped = True
        if cls.busy:
            raise KeyboardInterrupt


def run_job(job: Job) -> dict[str, Any]:
    """Train; what it prints goes to its log. A folder left by a stopped job is resumed, by a changed one emptied."""
    if _Worker.stopped:  # the pool hands out one job more than there are workers
        raise Interrupted("stopped before it began")
    _Worker.busy = True
    try:
        return _train(job)
    except (Interrupted, KeyboardInterrupt):
        _Worker.stopped = True
        raise
    finally:
        _Worker.busy = False


def _train(job: Job) -> dict[str, Any]:
    before = read_record(job.folder)
    changed = bool(before) and changed_settings(before.get("config", {}), job.config.model_dump(mode="json"))
    config = job.config.model_copy(update={"resume": not changed, "overwrite": bool(changed)})
    job.log.parent.mkdir(parents=True, exist_ok=True)
    with open(job.log, "a") as log, contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
        if isinstance(config, PretrainConfig):
            return pretrain(config)
        return finetune(config)


def _start(parent: int) -> None:
    """Set up a worker: one thread, and an end when the quick start itself ends, however that happens."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, _Worker.note)

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
