"""What a server says of itself before and while it serves, without its port."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from serving.config import BatchingConfig, ServerConfig
from serving.router import Router
from serving.server.server import Server
from serving.system.usage import Usage
from serving.telemetry.metrics import Readiness, Served
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
