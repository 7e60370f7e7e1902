"""Defaults: those of the pages, and the same of each way to a model."""

import inspect

import pytest

import digit_classifier
import serving
from serving.client import transport
from serving.config import BatchingConfig, ModelConfig, ServerConfig
from tests.support.pages import DOCS, cells

BATCHING, MODEL, SERVER = BatchingConfig(), ModelConfig(), ServerConfig()
MIB = 1 << 20
WAYS = (
    serving.Client, serving.AsyncClient, serving.Model, serving.AsyncModel,
    digit_classifier.Classifier, digit_classifier.AsyncClassifier,
)  # fmt: skip


@pytest.mark.parametrize(
    ("begin", "text"),
    [
        ("rows in a request, of", f"{BATCHING.max_request_rows:,}"),
        ("rows that wait", f"{BATCHING.queue_capacity:,}, in each"),
        ("rows in one run", f"{BATCHING.max_batch_size}, by memory less"),
        ("the outputs of a call", f"{BATCHING.max_response_bytes // MIB} MiB, of all outputs"),
        ("JSON over HTTP", f"{SERVER.max_json_bytes // MIB} MiB;"),
        ("a model, with weights", f"{MODEL.max_model_bytes >> 30} GiB"),
        ("time to drain", f"{SERVER.drain_s:.0f} s"),
    ],
)
def test_limits_of_a_server_are_those_of_the_page(begin, text):
    assert cells("limits.md", begin)[1].startswith(text)


def test_limits_of_a_client_are_those_of_the_page():
    timeout_s = inspect.signature(serving.Client).parameters["timeout_s"].default
    assert cells("limits.md", "time for a call")[1] == f"{timeout_s:.0f} s"
    # And room for what is around the outputs.
    most = (transport.MAX_ANSWER_BYTES - MIB) // MIB
    assert cells("limits.md", "answer")[1].startswith(f"{most} MiB of outputs")


def defaults_of(way):
    """The default of each argument of each method of a class, by their names."""
    return {
        (name, each.name): each.default
        for name, method in inspect.getmembers(way, inspect.isroutine)
        if not name.startswith("_") or name == "__init__"
        for each in inspect.signature(method, follow_wrapped=True).parameters.values()
        if each.default is not each.empty
    }


@pytest.mark.parametrize(
    "names", [("Client", "AsyncClient"), ("Model", "AsyncModel")], ids=lambda names: names[0]
)
def test_way_of_coroutines_has_the_defaults_of_the_other(names):
    first, second = (defaults_of(getattr(serving, name)) for name in names)
    assert first == second


def test_each_way_waits_as_long_for_a_model_as_the_page_says():
    (timeout_s,) = {defaults_of(way)["wait_ready", "timeout_s"] for way in WAYS}
    page = (DOCS / "clients.md").read_text("utf-8")
    assert f"`wait_ready` tries until its own timeout ({timeout_s:.0f} s)" in page


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (serving.Client.__init__, {
            "timeout_s": 10.0, "attempt_timeout_s": None, "token": None, "tls_ca": None,
            "tls_cert": None, "tls_key": None, "transport": "auto",
        }),
        (serving.Model.load, {
            "path": None, "version": None, "device": "auto", "precision": "fp32",
            "batching": None, "handler": None, "models": None, "threads": 0,
        }),
        (serving.Server.__init__, {"start_timeout_s": 60.0}),
        (serving.publish, {"models": "models", "new_signature": False}),
    ],
    ids=["Client", "Model.load", "Server", "publish"],
)  # fmt: skip
def test_arguments_that_may_be_left_out_are_the_documented_ones(function, expected):
    arguments = inspect.signature(function).parameters.values()
    assert {each.name: each.default for each in arguments
            if each.default is not each.empty} == expected  # fmt: skip
