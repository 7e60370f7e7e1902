"""When a model without golden samples is stuck, and when the loop is."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from types import SimpleNamespace

import pytest

from serving.protocols.health import Health
from serving.server.self_test import SelfTest
from serving.server.worker import Heartbeat
from serving.system.usage import Activity
from tests.support.fakes import until
from tests.support.servers import wait_until

INTERVAL_S = 0.02


def model(running_s):
    """A model that classifies no images, with a run that began so long ago."""
    batcher = SimpleNamespace(oldest_run_s=time.monotonic() - running_s, max_run_s=60.0)
    return SimpleNamespace(
        signature=None,
        served={"1": SimpleNamespace(entry=batcher)},
        model=SimpleNamespace(version="1"),
    )


class Owner:
    """A loop's thread."""

    is_stuck = False

    def post(self, task):
        if not self.is_stuck:
            task()


@asynccontextmanager
async def watched(owner, routes):
    """Test such models all the while; gives their health."""
    health = Health()
    health.set_serving(True)
    router = SimpleNamespace(owner=owner, routes=routes)
    test = asyncio.create_task(SelfTest(router, health, INTERVAL_S).run())
    yield health
    test.cancel()


async def test_model_whose_run_was_not_ended_is_stuck_and_the_server_only_with_all():
    async with watched(Owner(), {"slow": model(50.0), "hung": model(70.0)}) as health:
        await until(lambda: bool(health.stuck_models))
        assert (health.is_serving, {*health.stuck_models}) == (True, {"hung"})
    async with watched(Owner(), {"hung": model(70.0)}) as health:
        await until(lambda: not health.is_serving)
        assert {*health.stuck_models} == {"hung"}


@pytest.mark.parametrize("is_stuck", [True, False])
async def test_loop_that_has_no_turn_is_the_whole_server_and_it_recovers_by_itself(is_stuck):
    owner, routes = Owner(), {"a": model(0.0 if is_stuck else 70.0)}
    owner.is_stuck = is_stuck
    async with watched(owner, routes) as health:
        await until(lambda: not health.is_serving)
        assert {*health.stuck_models} == (set() if is_stuck else {"a"})
        owner.is_stuck, routes["a"] = False, model(0.0)
        await until(lambda: health.is_serving and not health.stuck_models)


# A worker is frozen if it reports no more, and slow as long as it waits for the machine


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
