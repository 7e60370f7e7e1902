"""Spans of calls, as a real collector of OpenTelemetry's gets them by OTLP."""

import sys
import time
from contextlib import suppress
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import grpc
import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from serving import Client
from serving.digits.wire import encode_request
from serving.errors import ConfigurationError, ModelNotFound
from serving.transports.calls import Tracer
from tests.support.fleet.collector import attributes_of, running_collector
from tests.support.h2_server import server_inside
from tests.support.raw import CLASSIFY, TIMEOUT_S
from tests.support.servers import free_address, on_both

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture
def collector():
    with running_collector() as collector:
        yield collector


def traced_server(classifier, endpoint, **options):
    """A server whose spans have all arrived once the block has ended."""
    return server_inside(classifier, otlp_endpoint=endpoint, **options)


def call(server, data, path=CLASSIFY, flags="01"):
    traceparent = f"00-{TRACE}-{PARENT}-{flags}"
    with grpc.insecure_channel(server.address) as channel:
        future = channel.unary_unary(path).future(
            data, timeout=TIMEOUT_S, metadata=(("traceparent", traceparent),)
        )
        future.exception()
        return future


@on_both
def test_span_continues_the_callers_trace(classifier, transport, collector, images):
    spans, endpoint = collector
    before_ns = time.time_ns()
    with traced_server(classifier, endpoint, transport=transport) as server:
        call(server, encode_request(images[0].tobytes()))
    after_ns = time.time_ns()
    span = spans.span(CLASSIFY[1:])
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert span.kind == span.SPAN_KIND_SERVER
    assert attributes_of(span).items() >= {
        "rpc.system": "grpc", "rpc.service": "digits.v1.DigitClassifier", "rpc.method": "Classify",
        "rpc.grpc.status_code": 0,
    }.items()  # fmt: skip
    assert [event.name for event in span.events] == ["run started", "run finished"]
    started_ns, finished_ns = (event.time_unix_nano for event in span.events)
    moments = [before_ns, span.start_time_unix_nano, started_ns, finished_ns,
               span.end_time_unix_nano, after_ns]  # fmt: skip
    assert moments == sorted(moments)
    assert started_ns < finished_ns
    assert spans.resources[0]["service.name"] == "digit-serving"


def test_many_images_have_their_run(classifier, collector, images):
    spans, endpoint = collector
    with traced_server(classifier, endpoint) as server:
        call(server, encode_request(images[:300].tobytes()))
    assert len(spans.span(CLASSIFY[1:]).events) == 2


def test_failed_calls_say_how(classifier, collector, images):
    spans, endpoint = collector
    with traced_server(classifier, endpoint) as server:
        call(server, encode_request(images[0].tobytes()))
        call(server, encode_request(b"odd"))
        call(server, b"", "/no.such/Method")
    refused, unknown = spans.spans[1:]
    assert attributes_of(refused)["rpc.grpc.status_code"] == 3
    assert refused.status.code == refused.status.STATUS_CODE_UNSET, "the caller's fault"
    assert not refused.events, "the run of another call"
    assert attributes_of(unknown)["rpc.grpc.status_code"] == 12
    assert unknown.status.code == unknown.status.STATUS_CODE_ERROR


def test_caller_that_does_not_sample_gets_no_span(classifier, collector, images):
    spans, endpoint = collector
    with traced_server(classifier, endpoint) as server:
        assert call(server, encode_request(images[0].tobytes()), flags="00").code().name == "OK"
    assert not spans.spans


def test_requests_over_http_have_spans(classifier, collector, images):
    spans, endpoint = collector
    with traced_server(classifier, endpoint, http_port=0) as server:
        body = b'{"images": [' + str(images[0].ravel().tolist()).encode() + b"]}"
        headers = {"content-type": "application/json", "traceparent": f"00-{TRACE}-{PARENT}-01"}
        request = Request(str(server.http_url) + "/v1/digits", body, headers)
        with urlopen(request, timeout=TIMEOUT_S) as answer:
            request_id = answer.headers["x-request-id"]
    span = spans.span("POST /v1/digits")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (TRACE, PARENT)
    assert attributes_of(span).items() >= {
        "http.request.method": "POST", "url.path": "/v1/digits", "http.route": "/v1/digits",
        "http.response.status_code": 200, "network.peer.address": "127.0.0.1",
        "request_id": request_id, "model.name": "digits", "model.version": "1", "batch.rows": 1,
    }.items()  # fmt: skip
    assert [event.name for event in span.events] == ["run started", "run finished"]


def test_spans_of_http_have_few_names(classifier, collector):
    spans, endpoint = collector
    with traced_server(classifier, endpoint, http_port=0) as server:
        for path in ("/v2/models/digits", "/v2/models/digits/versions/1", "/no/such/path"):
            with suppress(HTTPError), urlopen(str(server.http_url) + path, timeout=TIMEOUT_S):
                pass
    names = [span.name for span in spans.spans]
    assert names == ["GET /v2/models/{name}", "GET /v2/models/{name}/versions/{version}", "GET"]


def test_calls_of_clients_are_spans_that_their_servers_continue(
    classifier, collector, images, monkeypatch
):
    spans, endpoint = collector
    ended = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(ended))
    monkeypatch.setattr(trace, "get_tracer", provider.get_tracer)
    with traced_server(classifier, endpoint) as server, Client(server.address) as client:
        client.classify(images[:1])
        client.infer("digits", images=images[:1])
        with pytest.raises(ModelNotFound):
            client.infer("no-such-model", images=images[:1])
    ours = ended.get_finished_spans()
    assert [(span.name, span.kind.name) for span in ours] == [
        ("digits.v1.DigitClassifier/Classify", "CLIENT"),
        ("inference.GRPCInferenceService/ModelInfer", "CLIENT"),
    ]
    parents = {span.parent_span_id.hex() for span in spans.spans}
    assert parents >= {trace.format_span_id(span.context.span_id) for span in ours}


def test_clients_send_the_span_that_is_active(classifier, collector, images):
    spans, endpoint = collector
    tracer = TracerProvider().get_tracer("test")
    with traced_server(classifier, endpoint) as server, Client(server.address) as client:
        client.classify(images[:1])  # outside of any span
        with tracer.start_as_current_span("caller") as active:
            client.classify(images[:1])
    ours = trace.format_trace_id(active.get_span_context().trace_id)
    sent = [span for span in spans.spans if span.name == CLASSIFY[1:]]
    assert [span.trace_id.hex() == ours for span in sent] == [False, True]
    assert sent[1].parent_span_id.hex() == trace.format_span_id(active.get_span_context().span_id)


def test_server_without_its_collector_serves(classifier, images, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "1")
    with traced_server(classifier, f"http://{free_address()}") as server:
        for _ in range(3):
            assert call(server, encode_request(images[0].tobytes())).code().name == "OK"


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4317", "ftp://a:1", "http://"])
def test_endpoint_is_a_url(endpoint):
    with pytest.raises(ConfigurationError, match="expected an OTLP endpoint"):
        Tracer(endpoint)


def test_missing_extra_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(ConfigurationError, match=r"install '\.\[otel\]'"):
        Tracer("http://127.0.0.1:4317")
