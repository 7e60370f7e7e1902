"""When a model without golden samples is stuck, and when the loop is."""

import asyncio
import time
from types import SimpleNamespace

import pytest

from serving.protocols.health import Health
from serving.server.server import SelfTest
from tests.support.fakes import until

INTERVAL_S = 0.02


def model(running_s):
    """A model that classifies no images, with a run that began so long ago."""
    batcher = SimpleNamespace(oldest_run_s=time.monotonic() - running_s, max_run_s=60.0)
    return SimpleNamespace(
        signature=None, batchers={"1": batcher}, model=SimpleNamespace(version="1")
    )


class Owner:
    """A loop's thread."""

    is_stuck = False

    def post(self, task):
        if not self.is_stuck:
            task()


def test_model_whose_run_was_not_ended_is_stuck_and_the_server_only_with_all():
    routes = {"slow": model(50.0), "hung": model(70.0)}
    states = asyncio.run(watched(Owner(), routes, lambda health: bool(health.stuck_models)))
    assert states == (True, {"hung"})
    states = asyncio.run(watched(Owner(), {"hung": model(70.0)}, lambda h: not h.is_serving))
    assert states == (False, {"hung"})


def test_loop_that_has_no_turn_is_the_whole_server():
    owner = Owner()
    owner.is_stuck = True
    states = asyncio.run(watched(owner, {"slow": model(0.0)}, lambda health: not health.is_serving))
    assert states == (False, set())


@pytest.mark.parametrize("is_stuck", [True, False])
def test_server_recovers_by_itself(is_stuck):
    async def scenario():
        owner, routes = Owner(), {"a": model(0.0 if is_stuck else 70.0)}
        owner.is_stuck = is_stuck
        health = Health()
        health.set_serving(True)
        router = SimpleNamespace(owner=owner, routes=routes)
        test = asyncio.create_task(SelfTest(router, health, INTERVAL_S).run())
        await until(lambda: not health.is_serving)
        owner.is_stuck, routes["a"] = False, model(0.0)
        await until(lambda: health.is_serving and not health.stuck_models)
        test.cancel()

    asyncio.run(scenario())


async def watched(owner, routes, holds):
    health = Health()
    health.set_serving(True)
    router = SimpleNamespace(owner=owner, routes=routes)
    test = asyncio.create_task(SelfTest(router, health, INTERVAL_S).run())
    await until(lambda: holds(health))
    test.cancel()
    return health.is_serving, set(health.stuck_models)
