"""Forks and exits wait for runs of other threads, for some seconds in all."""

from _thread import RLock
from typing import Any

import pytest

from serving.model import fork
from tests.support.fakes import FakeClock


class Held:
    """The lock of a thread whose run takes so long, by a clock that moves as somebody waits."""

    def __init__(self, clock, run_s):
        self._clock, self.left_s = clock, run_s
        self.events = []

    def acquire(self, timeout):
        waited_s = min(timeout, self.left_s)
        self._clock.advance(waited_s)
        self.left_s -= waited_s
        self.events.append("held" if not self.left_s else "given up")
        return not self.left_s

    def release(self):
        self.events.append("released")


@pytest.fixture
def runs_of(monkeypatch):
    """Make threads that are in ONNX Runtime, each for some seconds; returns their locks."""
    clock = FakeClock()
    monkeypatch.setattr(fork, "time", type("Time", (), {"monotonic": clock}))
    monkeypatch.setattr(fork, "_locks", {})
    monkeypatch.setattr(fork, "_held", [])
    monkeypatch.setattr(fork, "_newcomers", RLock())

    def make(*run_s):
        clock.advance(1000.0)
        locks: list[Any] = [Held(clock, each) for each in run_s]
        fork._locks.update({-number: lock for number, lock in enumerate(locks, 1)})
        return locks, clock

    return make


def test_fork_waits_five_seconds_for_the_runs_of_all_threads(runs_of):
    (first, second, third, fourth), clock = runs_of(3.0, 1.9, 0.2, 0.0)
    fork._pause()
    assert clock() == 1005.0
    fork._resume()
    assert first.events == second.events == fourth.events == ["held", "released"]
    assert third.events == ["given up"], "it may hang"
    assert not fork._held


def test_thread_that_forks_does_not_wait_for_itself(runs_of):
    with fork.native_run():
        fork._pause()
        fork._resume()
    assert not fork._held


def test_child_has_no_lock_of_a_thread_that_is_not_there(runs_of):
    runs_of(0.0, 9.0)
    before = fork._newcomers
    fork._pause()
    fork._forget()
    assert (fork._locks, fork._held) == ({}, [])
    assert fork._newcomers is not before, "it may be held for ever"
    with fork.native_run():
        assert len(fork._locks) == 1


def test_thread_has_one_lock_for_all_its_runs(runs_of):
    with fork.native_run() as is_held, fork.native_run():
        assert is_held
        assert len(fork._locks) == 1
    assert fork.native_run() is fork.native_run()
