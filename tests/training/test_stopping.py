"""Signals during a step, between steps, and twice."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

from longtail.training.stopping import StopSignals


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def two_deferred_steps(number: int, done: list[str]) -> None:
    with StopSignals() as stops:
        assert stops.requested() == 0
        with stops.deferred():
            send(number)
            done.append("step")
            assert stops.requested() == number
            done.append("save")
        done.append("never")


@pytest.mark.parametrize(("number", "end"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, SystemExit)])
def test_a_step_is_finished_first(number: int, end: type[BaseException], capfd: pytest.CaptureFixture[str]) -> None:
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    done: list[str] = []
    with pytest.raises(end) as error:
        two_deferred_steps(number, done)
    assert done == ["step", "save"]
    assert "finishing this step" in capfd.readouterr().err
    if end is SystemExit:
        assert error.value.code == 143
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def twice(done: list[str]) -> None:
    with StopSignals(speaks=False) as stops, stops.deferred():
        send(signal.SIGINT)
        done.append("deferred")
        send(signal.SIGTERM)
        done.append("never")


def between_steps(done: list[str]) -> None:
    with StopSignals():
        send(signal.SIGINT)
        done.append("never")


def within_what_may_be_cut_off(done: list[str]) -> None:
    with StopSignals() as stops, stops.deferred(), stops.at_once():
        send(signal.SIGINT)
        done.append("never")


def before_what_may_be_cut_off(done: list[str]) -> None:
    with StopSignals(speaks=False) as stops, stops.deferred():
        send(signal.SIGINT)
        done.append("deferred")
        with stops.at_once():
            done.append("never")


@pytest.mark.parametrize("work", [between_steps, within_what_may_be_cut_off, before_what_may_be_cut_off])
def test_outside_of_steps_a_signal_is_obeyed_at_once(work: Callable[[list[str]], None]) -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        work(done)
    assert "never" not in done


def test_the_second_signal_quits_at_once() -> None:
    done: list[str] = []
    with pytest.raises(SystemExit, match="143"):
        twice(done)
    assert done == ["deferred"]


def test_other_threads_leave_signals_alone() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def work() -> None:
        with StopSignals() as stops, stops.deferred():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [before]
