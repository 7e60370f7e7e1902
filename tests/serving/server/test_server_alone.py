"""What a server says of itself before and while it serves, without its port."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from serving.config import BatchingConfig, ServerConfig
from serving.oip.queries import Queries
from serving.protocols.health import Health
from serving.router import Router
from serving.server.server import Server
from serving.system.usage import Usage
from serving.telemetry.metrics import HandlerUsage, Readiness, Served
from tests.serving.test_router import served

BATCHING = BatchingConfig(max_batch_size=7, max_request_rows=9)


@pytest.fixture
def router():
    router = Router(BATCHING)
    versions = served("3", "2", "1", default="2", canary=("3", 0.25), old="1")
    router.change("digits", replace(versions, reasons={"4": "it is corrupt", "0": "it is old"}))
    yield router
    router.close()


def server_of(router, catalog=None, **options):
    config = ServerConfig(port=0, http_port=None, metrics_port=None, **options)
    return Server(router, config, None, catalog)


async def test_report_has_each_version_in_service(router):
    server = server_of(router)
    server.health.set_serving(True)
    found = server.report()
    assert found.models == tuple(
        Served("digits", version, "cpu", "fp32", "h2", role, 10, None, 7, 9)
        for version, role in (("3", "canary"), ("2", "default"), ("1", ""))
    )
    assert (found.batching, found.num_calls, found.is_serving) == (BATCHING, 0, True)
    assert found.queues.keys() == {("digits", version) for version in "321"}
    assert (found.waiting, found.missing) == ({"digits/4": "it is corrupt"}, {})
    assert found.handlers == {}
    assert isinstance(found.usage, Usage)
    assert found.usage.resident_bytes > 0
    assert found.request.startswith("digit-serving infer digits --target ")
    assert (server.http_url, server.metrics_address, server.num_calls) == (None, "off", 0)


async def test_state_has_all_that_is_not_well(router):
    missing = {"late": "no such file", "also": "no graph"}
    catalog: Any = SimpleNamespace(missing=missing, models={}, failures={})
    server = server_of(router, catalog)
    reasons = {**missing, "digits/4": "it is corrupt"}
    assert server._state() == Readiness(False, frozenset(missing), reasons)
    server.health.set_serving(True)
    server.health.set_stuck(["digits"])
    assert server._state() == Readiness(True, frozenset({*missing, "digits"}), reasons)
    server.health.set_stuck([])
    server.health.set_blocked(["digits"])
    assert server._state() == Readiness(True, frozenset({*missing, "digits"}), reasons)
    found = server.report()
    assert [*found.missing.items()] == [("also", "no graph"), ("late", "no such file")]
    assert found.stuck_models == {*missing, "digits"}


@pytest.mark.parametrize("has_reflection", [True, False])
async def test_reflection_is_there_where_it_is_asked_for(has_reflection, router, monkeypatch):
    found = []
    monkeypatch.setattr(
        "serving.server.server.open_transport",
        lambda router, methods, config: found.extend(each.path for each in methods),
    )
    server_of(router, reflection=has_reflection)
    services = {path.split("/")[1] for path in found}
    expected = {"inference.GRPCInferenceService", "grpc.health.v1.Health",
                "digits.v1.DigitClassifier"}  # fmt: skip
    more = {"grpc.reflection.v1alpha.ServerReflection", "grpc.reflection.v1.ServerReflection"}
    assert services == expected | (more if has_reflection else set())


class Part:
    """A transport, an HTTP port or an exporter, whose calls are noted by their names."""

    def __init__(self, name, done, *, is_drained=True):
        self.name, self.done, self.is_drained = name, done, is_drained
        self.loop, self.address, self.num_calls, self.url = "loop", "m:9", 5, "http://h:1"
        self.method_names = ["HttpOwn"]

    async def start(self):
        self.done.append(f"{self.name}.start")
        return "a:1"

    async def warm_up(self):
        self.done.append(f"{self.name}.warm_up")

    async def drain(self, timeout_s):
        self.done.append((f"{self.name}.drain", timeout_s))
        return self.is_drained

    async def stop(self, grace_s):
        self.done.append((f"{self.name}.stop", grace_s))

    def serve(self, report, state):
        self.done.append(f"{self.name}.serve")


class Http(Part):
    """The HTTP port, which is no coroutine's."""

    def start(self, loop, address):  # type: ignore[override]
        self.done.append((f"{self.name}.start", loop, address))

    def stop(self):  # type: ignore[override]
        self.done.append(f"{self.name}.stop")


def server_of_parts(router, monkeypatch, **options):
    done: list[Any] = []
    monkeypatch.setattr(
        "serving.server.server.open_transport", lambda *_: Part("grpc", done, **options)
    )
    monkeypatch.setattr("serving.server.server._http_server", lambda *_: Http("http", done))
    monkeypatch.setattr(router, "close_pool", lambda: done.append("pool"))
    exporter = Part("metrics", done)
    config = ServerConfig(self_test_interval_s=0, drain_s=7.0)
    server = Server(router, config, exporter)
    set_serving = server.health.set_serving

    def noted(is_serving):
        done.append(is_serving)
        set_serving(is_serving)

    monkeypatch.setattr(server.health, "set_serving", noted)
    return server, done


async def test_server_serves_once_all_of_it_answers_and_drains_before_it_stops(router, monkeypatch):
    server, done = server_of_parts(router, monkeypatch)
    await server.start()
    start = ["grpc.start", ("http.start", "loop", "a:1"), "http.warm_up", True, "metrics.serve"]
    assert done == start
    assert (server.address, server.http_url, server.metrics_address) == (
        "a:1", "http://h:1", "m:9")  # fmt: skip
    assert (server.num_calls, server.report().num_calls) == (5, 5)
    assert "HttpOwn" in server.report().methods
    assert "--target a:1 " in server.report().request
    done.clear()
    assert await server.drain() is True
    assert done == [False, ("grpc.drain", 7.0), ("grpc.stop", 1.0), "pool", "http.stop"]


async def test_server_whose_calls_take_too_long_goes_on(router, monkeypatch):
    server, done = server_of_parts(router, monkeypatch, is_drained=False)
    await server.start()
    done.clear()
    assert await server.drain() is False
    assert done == [False, ("grpc.drain", 7.0)]


async def test_orders_are_for_the_thread_that_answers_calls(router, monkeypatch):
    posted: list[Any] = []
    done: list[Any] = []
    server = server_of(router)
    router.owner = SimpleNamespace(post=posted.append)
    monkeypatch.setattr(router, "block", lambda blocked: done.append(("block", blocked)))
    monkeypatch.setattr(router, "stop_batching", lambda alone: done.append(("alone", alone)))
    monkeypatch.setattr(Router, "blocked_models", frozenset({"digits"}))
    monkeypatch.setattr(server.health, "set_blocked", lambda names: done.append(names))
    server.block({5: 2.0})
    server.stop_batching(frozenset({6}))
    assert done == []
    for task in posted:
        task()
    assert done == [("block", {5: 2.0}), frozenset({"digits"}), ("alone", frozenset({6}))]
    router.on_block()
    assert done[3:] == [frozenset({"digits"})]
    router.owner = None


@pytest.mark.parametrize("interval_s", [0.0, 2.5])
async def test_server_tests_itself_until_it_stops(interval_s, router, monkeypatch):
    made: list[Any] = []

    class Test:
        def __init__(self, *facts):
            made.append(facts)

        async def run(self):
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                made.append("ended")
                raise

    monkeypatch.setattr("serving.server.server.SelfTest", Test)
    server, _ = server_of_parts(router, monkeypatch)
    server.config = replace(server.config, self_test_interval_s=interval_s)
    await server.start()
    await asyncio.sleep(0)
    assert made == [(router, server.health, interval_s)] * bool(interval_s)

    async def stop(part, grace_s):
        await asyncio.sleep(0)
        assert made[1:] == ["ended"] * bool(interval_s), "it would fail on a port that is closed"

    monkeypatch.setattr(Part, "stop", stop)
    await server.stop(0.0)
    assert made[1:] == ["ended"] * bool(interval_s)


async def test_self_test_ends_before_a_drain_begins(router, monkeypatch):
    """It could set SERVING again."""
    server, done = server_of_parts(router, monkeypatch)
    test = asyncio.create_task(asyncio.sleep(3600.0))
    server._self_test = test
    drain = Part.drain

    async def drained(part, timeout_s):
        done.append(test.cancelling())
        return await drain(part, timeout_s)

    monkeypatch.setattr(Part, "drain", drained)
    assert await server.drain() is True
    assert done[:3] == [False, 1, ("grpc.drain", 7.0)]


async def test_queries_have_the_limits_and_what_callers_may_do(router, monkeypatch):
    made: list[Any] = []

    class Noted(Queries):
        def __init__(self, *facts, **options):
            made.append((facts, options))
            super().__init__(*facts, **options)

    monkeypatch.setattr("serving.server.server.Queries", Noted)
    monkeypatch.setattr("serving.server.server.max_message_bytes", lambda *facts: facts)
    for may_control in (False, True):
        server = server_of(router, allow_repository_control=may_control)
        facts, options = made.pop()
        assert facts == (router, server.health, None)
        limit = (router, server.config)
        assert options == {"allow_control": may_control, "max_message_bytes": limit}


async def test_report_has_the_processes_of_handlers(router, monkeypatch):
    usages = {("digits", "2"): HandlerUsage(1, 2, 3)}
    monkeypatch.setattr(router, "handlers", lambda: usages)
    assert server_of(router).report().handlers == usages


async def test_health_is_that_of_each_service(router, monkeypatch):
    made: list[Any] = []

    class Noted(Health):
        def __init__(self, services, *facts):
            made.append({name: model() for name, model in services.items()})
            super().__init__(services, *facts)

    monkeypatch.setattr("serving.server.server.Health", Noted)
    server_of(router)
    assert made == [{"inference.GRPCInferenceService": "", "digits.v1.DigitClassifier": "digits"}]
