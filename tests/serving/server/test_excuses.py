"""Which failures of a self-test are excused, and which changes of health are logged."""

import asyncio
import math
from types import SimpleNamespace
from typing import Any

import pytest

from serving.protocols.health import Health
from serving.server import self_test
from serving.server.self_test import SelfTest


class Owner:
    """A loop's thread that has its turns."""

    def post(self, task):
        task()


class Over(Exception):
    """The rounds of a test are over."""


async def rounds(monkeypatch, states, waited_s):
    """Run self-tests 20 s apart; after each, the health of the server and the stuck models.

    Args:
        monkeypatch: pytest's.
        states: of each round: "well", "run" for one that is not ended, "loop" for no turn.
        waited_s: how long threads wait for cores in each round.
    """
    now, found, state = SimpleNamespace(s=1000.0, waited_s=0.0), [], [""]
    entry = SimpleNamespace(oldest_run_s=math.inf, max_run_s=60.0)
    busy, idle = (
        SimpleNamespace(signature=None, served={"1": SimpleNamespace(entry=each)},
                        model=SimpleNamespace(version="1"))
        for each in (entry, SimpleNamespace(oldest_run_s=math.inf, max_run_s=60.0))
    )  # fmt: skip
    health, left = Health(), [*states]
    health.set_serving(True)

    async def sleep(seconds):
        assert seconds == 20.0
        if now.s > 1000.0:
            found.append((health.is_serving, sorted(health.stuck_models)))
        if not left:
            raise Over
        state[0] = left.pop(0)
        now.s += seconds
        now.waited_s += waited_s
        entry.oldest_run_s = now.s - 80.1 if state[0] == "run" else math.inf

    async def wait_for(work, timeout_s):
        assert timeout_s == 20.0
        if state[0] == "loop":
            work.close()
            raise TimeoutError
        return await work

    own = {**vars(asyncio), "sleep": sleep, "wait_for": wait_for}
    monkeypatch.setattr(self_test, "asyncio", SimpleNamespace(**own))
    monkeypatch.setattr(self_test, "time", SimpleNamespace(monotonic=lambda: now.s))
    monkeypatch.setattr(self_test, "waited_for_cores_s", lambda: now.waited_s)
    router = SimpleNamespace(owner=Owner(), routes={"busy": busy, "idle": idle})
    with pytest.raises(Over):
        await SelfTest(router, health, 20.0).run()
    return found


WELL, RUN, LOOP = (True, []), (True, ["busy"]), (False, [])


@pytest.mark.parametrize(
    ("waited_s", "states", "expected"),
    [
        (10.0, ["run"] * 4, [WELL, WELL, WELL, RUN]),
        (10.0, ["run", "run", "well", "run", "run", "run", "run"], [WELL] * 6 + [RUN]),
        (9.9, ["run", "well", "run"], [RUN, WELL, RUN]),
        (10.0, ["loop"] * 4 + ["well"], [WELL, WELL, WELL, LOOP, WELL]),
        (9.9, ["loop", "well"], [LOOP, WELL]),
    ],
    ids=["starved", "starved again", "not starved", "starved loop", "loop"],
)  # fmt: skip
async def test_server_short_of_cores_is_excused_for_a_minute(
    waited_s, states, expected, monkeypatch
):
    assert await rounds(monkeypatch, states, waited_s) == expected


async def test_changes_of_health_are_logged_once_each(monkeypatch, caplog):
    caplog.set_level("INFO")
    await rounds(monkeypatch, ["run", "run", "well", "loop", "loop", "well", "well"], 0.0)
    assert [(each.levelname, each.message) for each in caplog.records] == [
        ("ERROR", "model busy is NOT_SERVING: a run of over 60 s"),
        ("INFO", "model busy is SERVING again"),
        ("ERROR", "self-test failed, health is NOT_SERVING: no answer within 20 s"),
        ("INFO", "self-test passed, health is SERVING"),
    ]


async def test_model_between_two_versions_runs_nothing():
    router = SimpleNamespace(owner=Owner(), routes={})
    route: Any = SimpleNamespace(served={})
    assert await SelfTest(router, Health(), 1.0)._runs({"a": route}) == {"a": (math.inf, 0.0)}
