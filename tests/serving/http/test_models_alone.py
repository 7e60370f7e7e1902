"""The page of models as JSON, whole, without a port."""

import json
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from serving.config import SecurityConfig, ServerConfig
from serving.http_api.models_page import ModelsPage, _reached
from serving.oip.examples import Access, Example
from serving.oip.queries import Queries
from serving.protocols.health import Health
from serving.router import Router
from tests.serving.http.test_handlers_alone import outcome
from tests.serving.test_router import served


@pytest.fixture
def router():
    router = Router()
    versions = served("3", "2", "1", default="2", canary=("3", 0.0512), old="1", stable="2")
    router.change("digits", replace(versions, reasons={"4": "it is corrupt"}))
    yield router
    router.close()


def described(router, host, **security):
    health = Health(models=lambda: router.routes)
    health.set_serving(True)
    catalog: Any = SimpleNamespace(models={}, failures={"broken": "no ONNX file"})
    config = ServerConfig(security=SecurityConfig(**security))
    page = ModelsPage(router, Queries(router, health, catalog), config)
    page.grpc_address = "0.0.0.0:50051"
    (route,) = page.routes()
    assert (route.method, route.path, route.is_work) == ("GET", "/v2/models", False)
    answer = outcome(route.handler(SimpleNamespace(plan=SimpleNamespace(host=host))))
    return json.loads(answer.body)["models"]


def test_models_are_described_whole(router):
    found = described(router, "a.org:8080")
    tensors = router.find("digits").tensors
    access = Access("a.org:50051", "http://a.org:8080")
    roles = {"3": ["0.0512 of the calls"], "2": ["default", "stable"], "1": ["old"]}
    expected = [
        {
            "name": "digits",
            "version": version,
            "state": "READY",
            "reason": "",
            "roles": roles[version],
            "device": "cpu",
            "precision": "fp32",
            "optimized": "",
            "batching": "",
            "inputs": [{"name": "images", "datatype": "UINT8", "axes": ["N", "784"], "content": "",
                        "shape": [1, 784], "sample": None}],
            "outputs": [{"name": "probabilities", "datatype": "FP32", "axes": ["N", "10"],
                         "content": ""}],
            "classes": [],
            "takes_pictures": True,
            "in_parts": False,
            "requests": Example("digits", "" if version == "2" else version, tensors, {},
                                access).lines(),
        }
        for version in "321"
    ]  # fmt: skip
    broken = {"name": "broken", "version": "", "state": "UNAVAILABLE", "reason": "no ONNX file",
              "roles": []}  # fmt: skip
    assert found == [*expected, broken]


def test_requests_have_all_that_the_server_asks_for(router):
    files = {name: f"{name}.pem" for name in ("tls_cert", "tls_key", "tls_client_ca")}
    found = described(router, "a.org", tokens="t" * 20, **files)
    access = Access("a.org:50051", "https://a.org", "ca.pem", needs_certificate=True,
                    has_tokens=True)  # fmt: skip
    example = Example("digits", "", router.find("digits").tensors, {}, access)
    assert found[1]["requests"] == example.lines()
    without = described(router, "")
    assert "curl" not in without[1]["requests"], "nobody knows by which host"


@pytest.mark.parametrize(
    ("address", "host", "expected"),
    [
        ("0.0.0.0:5", "a:8080", "a:5"), ("0.0.0.0:5", "a", "a:5"),
        ("[::]:5", "[::1]:80", "[::1]:5"), ("[::]:5", "[::1]", "[::1]:5"),
        ("127.0.0.1:5", "a:80", "127.0.0.1:5"),
    ],
)  # fmt: skip
def test_address_is_the_one_by_which_the_caller_came(address, host, expected):
    assert _reached(address, host) == expected
