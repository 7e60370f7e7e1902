"""Answers about models, compared whole: what a server says is what a client reads."""

from types import SimpleNamespace
from typing import Any

import pytest

from serving.client.model_messages import model_info
from serving.config import BatchingConfig
from serving.oip import inference_pb
from serving.oip.methods import inference_methods
from serving.oip.queries import Queries, model_statistics
from serving.telemetry.metrics import ModelCounts
from serving.tensors import ModelInfo
from tests.support.described import INFO, PLAIN


def serving_alone(info: ModelInfo, delay_s: float = 0.0) -> Queries:
    """The queries of a server with one model of a description."""
    batching = BatchingConfig(max_batch_size=max(1, info.max_batch_size), max_queue_delay_s=delay_s)
    model = SimpleNamespace(
        tensors=info.tensors, backend="python", version=info.version,
        settings=SimpleNamespace(of=lambda _: batching),
    )  # fmt: skip
    route = SimpleNamespace(
        name=info.name, model=model, served=dict.fromkeys(info.versions, model),
        describe=lambda _: info, versions=SimpleNamespace(find=lambda _: model),
    )  # fmt: skip
    router: Any = SimpleNamespace(
        find=lambda _: route, routes={info.name: route}, batching=batching, served=(model,)
    )
    health: Any = SimpleNamespace(is_serving=True, is_model_serving=lambda _: True)
    return Queries(router, health, max_message_bytes=info.max_message_bytes)


def answered(queries: Queries, name: str, /, **fields: Any) -> bytes:
    """A query's answer over gRPC."""
    router: Any = None
    methods: Any = inference_methods(router, queries)
    (method,) = (each for each in methods if each.path.endswith(f"/{name}"))
    request = getattr(inference_pb, f"{name}Request")(**fields).SerializeToString()
    found: bytes = method.answer(request)
    return found


@pytest.mark.parametrize("info", [INFO, PLAIN], ids=["all facts", "few facts"])
def test_client_reads_the_description_that_the_server_has(info):
    queries = serving_alone(info)
    metadata, config = (
        answered(queries, name, name="m", version=info.version)
        for name in ("ModelMetadata", "ModelConfig")
    )
    found = model_info(metadata, config, info.version, "x:1")
    assert found == info
    for mine, its in zip((*found.inputs, *found.outputs), (*info.inputs, *info.outputs),
                         strict=True):  # fmt: skip
        assert (mine.names, mine.content) == (its.names, its.content)


@pytest.mark.parametrize("info", [INFO, PLAIN], ids=["all facts", "few facts"])
def test_facts_over_http_are_those_of_the_description(info):
    facts = serving_alone(info).facts("m", info.version)
    names = {"text": ("texts",), "x": ("texts", "", "width")}
    expected = {
        "max_batch_size": info.max_batch_size, "version": info.version, "versions": info.versions,
        "default_version": info.default_version, "axes": names,
        "contents": {"text": "text", "words": "json"},
    }  # fmt: skip
    if info is INFO:
        expected |= {
            name: getattr(info, name)
            for name in ("canary_version", "not_served", "batching", "device", "precision",
                         "optimized", "max_request_rows", "max_message_bytes", "test_accuracy",
                         "labels", "pictures")
        }  # fmt: skip
    assert facts == expected


def test_configuration_of_a_model_is_this():
    config = serving_alone(INFO, delay_s=0.0025).model_config("m")
    del config["parameters"]
    assert config == {
        "name": "m",
        "platform": "python",
        "backend": "python",
        "max_batch_size": 17,
        "input": [
            {"name": "text", "data_type": "TYPE_STRING", "dims": []},
            {"name": "x", "data_type": "TYPE_FP32", "dims": [4, -1]},
        ],
        "output": [
            {"name": "words", "data_type": "TYPE_STRING", "dims": []},
            {"name": "y", "data_type": "TYPE_INT64", "dims": [3]},
        ],
        "model_transaction_policy": {"decoupled": True},
        "dynamic_batching": {"preferred_batch_size": [], "max_queue_delay_microseconds": 2500},
    }


def test_statistics_have_each_time_that_was_counted():
    counts = ModelCounts()
    for _ in range(2):
        counts.queue_s.add(0.5)
        counts.request_s.add(2.0)
    counts.calls_run_s, counts.calls_output_s = 3.0, 0.25
    counts.runs.update({4: 1, 1: 2})
    counts.runs_ns.update({4: 70, 1: 90})
    counts.num_failed, counts.failed_s = 5, 0.125
    assert model_statistics(("m", "3"), counts, 1_700_000_000_123) == {
        "name": "m",
        "version": "3",
        "last_inference": 1_700_000_000_123,
        "inference_count": 6,
        "execution_count": 3,
        "inference_stats": {
            "queue": {"count": 2, "ns": 1_000_000_000},
            "compute_input": {"count": 2, "ns": 0},
            "compute_infer": {"count": 2, "ns": 3_000_000_000},
            "compute_output": {"count": 2, "ns": 250_000_000},
            "success": {"count": 2, "ns": 4_250_000_000},
            "fail": {"count": 5, "ns": 125_000_000},
        },
        "batch_stats": [
            {"batch_size": 1, "compute_infer": {"count": 2, "ns": 90}},
            {"batch_size": 4, "compute_infer": {"count": 1, "ns": 70}},
        ],
    }
