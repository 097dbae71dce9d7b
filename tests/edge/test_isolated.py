import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from edgemim.edge import isolated
from edgemim.edge.isolated import CaseFailed, IsolatedCase, IsolatedResult, measure_isolated

CASES = """
import os, signal, sys, time
from edgemim.errors import MissingLibrary, UserError

def steady(name="x"):
    print("chatter on standard output")
    return (lambda: time.sleep(0.001)), {"name": name, "threads": os.environ["OMP_NUM_THREADS"]}

def hungry(mebibytes):
    held = bytearray(mebibytes * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    return (lambda: len(held)), {}

def mortal(calls):
    left = iter(range(calls))
    def call():
        if next(left, None) is None:
            os.kill(os.getpid(), signal.SIGSEGV)
    return call, {}

def loud(calls):
    left = iter(range(calls))
    def call():
        if next(left, None) is None:
            raise RuntimeError("the kernel gave up")
    return call, {}

def wrong():
    raise UserError("this file is not for me")

def missing():
    raise MissingLibrary("pip install something")

def broken():
    raise OSError("lib.so: cannot open")

def slow_to_open():
    time.sleep(0.5)
    return (lambda: None), {}

def sleepy():
    time.sleep(60)
"""


@pytest.fixture(autouse=True)
def _cases_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cases_for_test.py").write_text(CASES)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def case(function: str, **arguments: object) -> IsolatedCase:
    return IsolatedCase(f"cases_for_test:{function}", arguments, threads=3)


def opener(function: str, **arguments: object) -> Callable[[], IsolatedCase]:
    return lambda: case(function, **arguments)


def test_a_case_runs_in_a_process_of_its_own_and_chatter_does_not_disturb() -> None:
    with case("steady", name="y") as child:
        assert child.pid != os.getpid()
        assert child.facts == {"name": "y", "threads": "3"}
        block = child.block(0.05, 10)
        assert len(block.latencies_ms) >= 10
        assert block.latencies_ms.min() >= 1
        assert block.wall_seconds >= 0.05
    assert not psutil.pid_exists(child.pid)


def test_memory_is_the_child_s() -> None:
    results = measure_isolated(
        {size: opener("hungry", mebibytes=size) for size in (10, 150)}, seconds=0.0, runs=1, blocks=5
    )
    small, large = results[10], results[150]
    assert isinstance(small, IsolatedResult)
    assert isinstance(large, IsolatedResult)
    assert large.memory_added_mib - small.memory_added_mib == pytest.approx(140, abs=12)
    assert large.memory_peak_mib > large.memory_added_mib + 10


@pytest.mark.parametrize(
    ("function", "reason", "absent"),
    [
        ("wrong", "this file is not for me", False),
        ("missing", "pip install something", True),
        ("broken", r"OSError: lib\.so: cannot open", False),
        ("nothing_of_that_name", "AttributeError", False),
    ],
)
def test_a_case_that_cannot_be_opened_says_why(function: str, reason: str, absent: bool) -> None:
    with pytest.raises(CaseFailed, match=reason) as caught:
        case(function)
    assert caught.value.absent is absent


def test_a_crash_names_the_signal_and_an_error_its_last_line() -> None:
    with case("mortal", calls=20) as child, pytest.raises(CaseFailed, match="was killed by SIGSEGV"):
        child.block(0.0, 100)
    with case("loud", calls=20) as child, pytest.raises(CaseFailed, match=r"ended with status 1: .*the kernel gave up"):
        child.block(0.0, 100)


def test_the_others_are_measured_when_one_dies() -> None:
    openers = {
        "first": opener("steady"),
        "mortal": opener("mortal", calls=30),
        "missing": opener("missing"),
        "last": opener("steady"),
    }
    results = measure_isolated(openers, seconds=0.05, runs=5, blocks=5)
    assert list(results) == list(openers)
    first, mortal, missing, last = results.values()
    assert isinstance(first, IsolatedResult)
    assert isinstance(last, IsolatedResult)
    assert len(first.timing.blocks) == len(last.timing.blocks) == 5
    assert isinstance(mortal, CaseFailed)
    assert "SIGSEGV" in str(mortal)
    assert isinstance(missing, CaseFailed)
    assert missing.absent


def test_start_is_timed_apart_from_the_runs(tmp_path: Path) -> None:
    (result,) = measure_isolated({"a": opener("slow_to_open")}, seconds=0.0, runs=3, blocks=5).values()
    assert isinstance(result, IsolatedResult)
    assert result.cold_start_s >= 0.5
    assert result.timing.latencies_ms.max() < 400


def test_a_case_is_not_opened_without_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "available_memory_mib", lambda: 100.0)
    with pytest.raises(CaseFailed, match="only 100 MiB of memory are left"):
        case("steady")


def test_all_may_fail() -> None:
    results = measure_isolated({"a": opener("wrong"), "b": opener("missing")}, seconds=0.1, runs=0, blocks=5)
    assert all(isinstance(result, CaseFailed) for result in results.values())


def test_a_hanging_case_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isolated, "_START_TIMEOUT_S", 3.0)
    began = time.monotonic()
    with pytest.raises(CaseFailed, match="SIGKILL"):
        case("sleepy")
    assert time.monotonic() - began < 20


def test_a_killed_parent_leaves_no_child() -> None:
    code = (
        "import time; from edgemim.edge.isolated import IsolatedCase\n"
        "child = IsolatedCase('cases_for_test:steady', {}, threads=1); print(child.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    _, alive = psutil.wait_procs([child], timeout=10)
    assert not alive


def test_serve_without_a_question_ends() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "edgemim.edge.isolated"], input="", capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_serve_speaks_one_json_value_a_line() -> None:
    questions = [
        {"opener": "cases_for_test:steady", "arguments": {}},
        {"seconds": 0.0, "runs": 4},
        {"seconds": 0.0, "runs": 5},
    ]
    done = subprocess.run(
        [sys.executable, "-m", "edgemim.edge.isolated"],
        input="".join(json.dumps(question) + "\n" for question in questions),
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    ready, four, five = map(json.loads, done.stdout.splitlines())
    assert ready["name"] == "x"
    assert (len(four["latencies_ms"]), len(five["latencies_ms"])) == (4, 5)
    assert "chatter" in done.stderr
