"""Health: each probe and each watcher sees the state that follows from the facts, once."""

import random
from typing import Any

import pytest
from grpc_health.v1 import health_pb2

from serving.errors import ModelNotFound
from serving.protocols.health import SERVICE, Health
from tests.support.locks import KeptLock, handed_in, waits

States = health_pb2.HealthCheckResponse
NAMES = ("", "own.Service", "digits", "texts", "late", "unknown")


def methods_of(health) -> Any:
    """Check and Watch."""
    return health.methods()


class World:
    """A health, the facts that it is about, and what watchers should have got."""

    def __init__(self, draw):
        self.draw = draw
        self.models, self.missing = {"digits", "texts"}, {"late"}
        self.default = "digits"
        self.health = Health(
            {"own.Service": lambda: self.default}, lambda: self.models, lambda: self.missing
        )
        check, watch = methods_of(self.health)
        assert (check.path, watch.path) == (f"/{SERVICE}/Check", f"/{SERVICE}/Watch")
        assert (check.is_open, watch.is_open) == (True, True), "probes have no token"
        self.check, self.subscribe = check.answer, watch.subscribe
        self.is_serving, self.stuck, self.blocked = False, set(), set()
        self.watchers = []

    def expected(self, name):
        if name not in {"", "own.Service"} | self.models | self.missing:
            return States.SERVICE_UNKNOWN
        model = self.default if name == "own.Service" else name
        is_well = model not in self.stuck | self.blocked | self.missing
        return States.SERVING if self.is_serving and is_well else States.NOT_SERVING

    def step(self):
        drawn = {self.draw.choice(["digits", "texts"]) for _ in range(self.draw.randrange(3))}
        match self.draw.randrange(5):
            case 0:
                self.is_serving = self.draw.random() < 0.7
                self.health.set_serving(self.is_serving)
            case 1:
                self.stuck = drawn
                self.health.set_stuck(iter(drawn))
            case 2:
                self.blocked = drawn
                self.health.set_blocked(iter(drawn))
            case 3:
                name, got = self.draw.choice(NAMES), []
                end = self.subscribe(health_pb2.HealthCheckRequest(service=name)
                                     .SerializeToString(), got.append)  # fmt: skip
                self.watchers.append((name, got, [], end))
            case 4 if self.watchers:
                *_, end = self.watchers.pop(self.draw.randrange(len(self.watchers)))
                end()
                end()  # as often as a call may end
        for name, _, wanted, _ in self.watchers:
            if wanted[-1:] != [self.expected(name)]:
                wanted.append(self.expected(name))


@pytest.mark.parametrize("seed", range(20))
def test_checks_and_watchers_see_each_change_once(seed):
    world = World(random.Random(seed))
    for _ in range(60):
        world.step()
        for name, got, wanted, _ in world.watchers:
            assert [States.FromString(each).status for each in got] == wanted, name
        for name in NAMES:
            request, expected = health_pb2.HealthCheckRequest(service=name), world.expected(name)
            if expected == States.SERVICE_UNKNOWN:
                with pytest.raises(ModelNotFound, match=r"^unknown service$"):
                    world.check(request.SerializeToString())
            else:
                status = States.FromString(world.check(request.SerializeToString())).status
                assert status == expected
            if name in ("digits", "texts", "late"):
                assert world.health.is_model_serving(name) == (expected == States.SERVING)


@pytest.mark.parametrize(
    "change",
    [
        lambda health: health.set_serving(True),
        lambda health: health.set_stuck(["digits"]),
        lambda health: health.set_blocked(["digits"]),
        lambda health: methods_of(health)[1].subscribe(b"", lambda _: None),
    ],
    ids=["serving", "stuck", "blocked", "watch"],
)
def test_changes_wait_for_one_another(change):
    lock = KeptLock()
    with handed_in(lock):
        health = Health()
    assert waits(lock, lambda: change(health))
    assert not any([health.is_serving, health.stuck_models, health.blocked_models])
    sent = []
    end = methods_of(health)[1].subscribe(b"", sent.append)
    assert waits(lock, end)
    health.set_serving(True)
    assert len(sent) == 2, "it is watched still"
