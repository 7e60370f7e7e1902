"""A worker is frozen if it reports no more, and slow as long as it waits for the machine."""

import os
import signal
import subprocess
import sys
from contextlib import contextmanager

import pytest

from serving.server.worker import Heartbeat
from serving.system.process import Activity
from tests.support.processes import wait_until

IDLE = Activity(cpu_s=3.0, is_waiting_for_machine=False)
"""Stopped, or waiting for a lock: all its threads sleep."""
WAITING = Activity(cpu_s=3.0, is_waiting_for_machine=True)
"""It wants a core, or reads its pages from a disk."""


def looks(*activities, reported_s=10.0):
    """Look at a worker that has reported once, and then never again."""
    heartbeat = Heartbeat()
    assert not heartbeat.is_frozen(reported_s, activities[0])
    return [heartbeat.is_frozen(reported_s, activity) for activity in activities]


def test_worker_that_sleeps_without_reports_is_frozen():
    assert looks(*[IDLE] * 5) == [False, False, False, True, True]


def test_worker_that_waits_for_the_machine_is_never_frozen():
    assert not any(looks(*[WAITING] * 1000))


def test_worker_that_gets_a_little_processor_time_is_never_frozen():
    slow = [Activity(cpu_s=0.4 * look, is_waiting_for_machine=True) for look in range(1000)]
    assert not any(looks(*slow))


def test_worker_that_computes_without_reports_is_frozen():
    busy = [Activity(cpu_s=0.9 * look, is_waiting_for_machine=True) for look in range(6)]
    assert looks(*busy)[-1]


def test_report_ends_the_series():
    heartbeat = Heartbeat()
    for look in range(100):  # it reports at every fourth look
        assert not heartbeat.is_frozen(1.0 + look // 4, IDLE)


@contextmanager
def process(code):
    with subprocess.Popen([sys.executable, "-c", code]) as running:
        try:
            yield running.pid
        finally:
            running.kill()


@pytest.mark.skipif(not os.path.isdir("/proc/self/task"), reason="needs /proc")
def test_activity_of_processes():
    with process("while True: pass") as busy:
        wait_until(lambda: Activity.of(busy).cpu_s > 0.1)
        assert Activity.of(busy).is_waiting_for_machine
        os.kill(busy, signal.SIGSTOP)
        wait_until(lambda: not Activity.of(busy).is_waiting_for_machine)
        os.kill(busy, signal.SIGCONT)
        wait_until(lambda: Activity.of(busy).is_waiting_for_machine)
    with process(
        "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()"
    ) as dead:
        wait_until(lambda: not Activity.of(dead).is_waiting_for_machine)
    assert Activity.of(dead) == Activity(), "it has ended: nothing is known"
