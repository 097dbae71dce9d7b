"""Signals wait for a step boundary where they are noted, and end a run at once where nothing is lost."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from edgemim.errors import Interrupted, SavedOnSignal
from edgemim.training.signals import StopSignal, stopped

ASKING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


def send(name: signal.Signals) -> None:
    os.kill(os.getpid(), name)


@pytest.mark.parametrize("name", ASKING)
def test_a_signal_is_remembered_and_the_old_handler_comes_back(name: signal.Signals) -> None:
    before = {each: signal.getsignal(each) for each in ASKING}
    with StopSignal() as stop:
        assert stop.active and stop.received is None
        send(name)
        assert stop.received is name
    assert not stop.active
    assert {each: signal.getsignal(each) for each in ASKING} == before


@pytest.mark.parametrize(
    ("name", "kind"), [(signal.SIGTERM, SavedOnSignal), (signal.SIGUSR1, SavedOnSignal), (signal.SIGINT, Interrupted)]
)
def test_where_nothing_is_lost_it_raises_at_once(name: signal.Signals, kind: type[BaseException]) -> None:
    with StopSignal() as stop, pytest.raises(kind, match=rf"{name.name} .*--resume"), stop.raising(True):
        send(name)


def test_inside_a_step_it_waits_and_raises_where_raising_begins_again() -> None:
    reached = []

    def run(stop: StopSignal) -> None:
        with stop.raising(True):
            with stop.noting():
                send(signal.SIGTERM)
                reached.append("step ended")
            reached.append("left")

    with StopSignal() as stop, pytest.raises(SavedOnSignal):
        run(stop)
    assert reached == ["step ended"]


def test_noting_takes_the_signals_over_where_nobody_has() -> None:
    stop = StopSignal()
    with stop.noting():
        send(signal.SIGUSR1)
        assert stop.received is signal.SIGUSR1
    assert not stop.active


def test_a_second_interrupt_does_not_wait() -> None:
    with StopSignal():
        send(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


def test_a_second_request_to_stop_disturbs_nothing() -> None:
    with StopSignal() as stop:
        with pytest.raises(SavedOnSignal), stop.raising(True):
            send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert stop.received is signal.SIGTERM


def test_outside_the_main_thread_signals_are_left_alone() -> None:
    seen = []

    def run() -> None:
        with StopSignal() as stop:
            seen.append((stop.active, signal.getsignal(signal.SIGTERM)))

    before = signal.getsignal(signal.SIGTERM)
    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [(False, before)]


def test_how_a_stopped_run_ends() -> None:
    assert stopped("saved", interrupted=True).exit_code == 130
    assert stopped("saved", interrupted=False).exit_code == 75
