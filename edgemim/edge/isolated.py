"""One measured case in a process of its own: opened there, run block by block on command, its peak memory read.

A process for each case keeps thread pools apart, makes peak memory the case's own, and turns a crash of a runtime
into one failed row. `python -m edgemim.edge.isolated` is the child; it speaks one JSON value a line.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np

from edgemim.edge.benchmark import Block, Name, Timing, interleave, run_block
from edgemim.edge.conditions import available_memory_mib
from edgemim.edge.machine import peak_memory_mib
from edgemim.errors import EdgemimError, MissingLibrary, NoGpu

_START_TIMEOUT_S = 300.0
_BLOCK_TIMEOUT_S = 600.0
_LEAST_MEMORY_MIB = 512.0


class CaseFailed(Exception):
    """A case could not be opened or died; `absent` tells a missing library from other reasons."""

    def __init__(self, reason: str, *, absent: bool = False) -> None:
        super().__init__(reason)
        self.absent = absent


class IsolatedCase:
    """A child process that opened a case with `opener` ("module:function") and the given JSON-able arguments.

    The function returns (call, facts): the callable to time and a mapping to hand back. Use as a context manager.
    Raises CaseFailed with one sentence if it cannot be opened.
    """

    def __init__(self, opener: str, arguments: Mapping[str, Any], *, threads: int) -> None:
        self.failure: CaseFailed | None = None
        if (left := available_memory_mib()) < _LEAST_MEMORY_MIB:
            raise CaseFailed(f"only {left:.0f} MiB of memory are left beside the open cases; measure fewer at once")
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (held as long as the child)
        root = str(Path(__file__).parents[2])
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
        self._child = subprocess.Popen(
            [sys.executable, "-m", "edgemim.edge.isolated"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env=environment,
        )
        self.pid = self._child.pid
        self.memory_peak_mib = self.memory_before_mib = self.cold_start_s = float("nan")
        try:
            self.facts: dict[str, Any] = self._ask({"opener": opener, "arguments": dict(arguments)}, _START_TIMEOUT_S)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> IsolatedCase:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self.close()

    def block(self, seconds: float, runs: int) -> Block:
        """Run one block in the child. Raises CaseFailed if it dies."""
        answer = self._ask({"seconds": seconds, "runs": runs}, _BLOCK_TIMEOUT_S + 20 * seconds)
        return Block(np.asarray(answer["latencies_ms"]), answer["cpu_seconds"], answer["wall_seconds"])

    def close(self) -> None:
        """End the child: it leaves when its input ends, or is killed."""
        if self._child.stdin and not self._child.stdin.closed:
            with contextlib.suppress(BrokenPipeError):
                self._child.stdin.close()
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.stdout:
            self._child.stdout.close()
        self._log.close()

    def _ask(self, question: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        # A hanging child is killed; its output then ends, and so does the wait for the line.
        watchdog = threading.Timer(timeout_s, self._child.kill)
        watchdog.start()
        try:
            self._child.stdin.write(json.dumps(question) + "\n")
            self._child.stdin.flush()
            line = self._child.stdout.readline()
        except BrokenPipeError:
            line = ""
        finally:
            watchdog.cancel()
        answer = json.loads(line) if line else {"error": self._death(), "absent": False}
        if "error" in answer:
            self.failure = CaseFailed(answer["error"], absent=answer["absent"])
            raise self.failure
        self.memory_peak_mib = answer.pop("memory_peak_mib")
        self.memory_before_mib = answer.pop("memory_before_mib", self.memory_before_mib)
        self.cold_start_s = answer.pop("cold_start_s", self.cold_start_s)
        return answer

    def _death(self) -> str:
        code = self._child.wait()
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        self._log.seek(0)
        last = self._log.read().strip().splitlines()[-1:]
        return f"its process {how}" + (f": {last[0][:300]}" if last else "")


@dataclass(frozen=True)
class IsolatedResult:
    """Timing and memory of one case: the process's peak, and how much of it came with the case.

    `cold_start_s` is the time from importing the libraries to the end of the first run, compilation included.
    """

    timing: Timing
    facts: Mapping[str, Any]
    memory_peak_mib: float
    memory_added_mib: float
    cold_start_s: float = float("nan")


def measure_isolated(
    openers: Mapping[Name, Callable[[], IsolatedCase]],
    *,
    seconds: float,
    runs: int,
    blocks: int,
    on_block: Callable[[], None] = lambda: None,
) -> dict[Name, IsolatedResult | CaseFailed]:
    """Open all cases, time them interleaved, close them. A case that dies is left out and the others start anew."""
    failed: dict[Name, CaseFailed] = {}
    while True:
        with contextlib.ExitStack() as stack:
            children: dict[Name, IsolatedCase] = {}
            for name in [name for name in openers if name not in failed]:
                try:
                    children[name] = stack.enter_context(openers[name]())
                except CaseFailed as error:
                    failed[name] = error
            runners = {name: child.block for name, child in children.items()}
            pids = [child.pid for child in children.values()]
            try:
                timings = interleave(runners, seconds=seconds, runs=runs, blocks=blocks, pids=pids, on_block=on_block)
            except CaseFailed:
                failed |= {name: child.failure for name, child in children.items() if child.failure}
                continue
            return {
                name: failed[name] if name in failed else _result(children[name], timings[name]) for name in openers
            }


def _result(child: IsolatedCase, timing: Timing) -> IsolatedResult:
    added = child.memory_peak_mib - child.memory_before_mib
    return IsolatedResult(timing, child.facts, child.memory_peak_mib, added, child.cold_start_s)


def serve(questions: IO[str], answers: IO[str]) -> None:
    """The child's part: open the case that the first line names, then run a block for each further line."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's; it closes the pipe

    def answer(content: Mapping[str, Any]) -> None:
        answers.write(json.dumps({**content, "memory_peak_mib": peak_memory_mib()}) + "\n")
        answers.flush()

    request = json.loads(questions.readline() or "{}")
    if not request:
        return
    began = time.perf_counter()
    try:
        module, _, function = request["opener"].partition(":")
        opener = getattr(importlib.import_module(module), function)
        before = peak_memory_mib()
        call, facts = opener(**request["arguments"])
        call()
    except EdgemimError as error:
        answer({"error": str(error), "absent": isinstance(error, MissingLibrary | NoGpu)})
        return
    except Exception as error:
        answer({"error": f"{type(error).__name__}: {error}", "absent": False})
        return
    answer({**facts, "cold_start_s": time.perf_counter() - began, "memory_before_mib": before})
    for line in questions:
        order = json.loads(line)
        block = run_block(call, order["seconds"], order["runs"])
        answer(
            {
                "latencies_ms": block.latencies_ms.tolist(),
                "cpu_seconds": block.cpu_seconds,
                "wall_seconds": block.wall_seconds,
            }
        )


if __name__ == "__main__":
    # Libraries print to standard output: keep the pipe for the answers and send the rest to standard error.
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    serve(sys.stdin, pipe)
