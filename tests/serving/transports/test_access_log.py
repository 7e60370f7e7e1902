"""Log lines of calls: ids come in, go on and come back; one event is one line of JSON."""

import logging
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

from digit_classifier import Classifier
from digit_classifier.remote import RemoteDigits
from digit_classifier.wire import encode_request
from serving import Client
from serving.config import SecurityConfig
from serving.errors import ConfigurationError, ModelNotFound
from serving.handlers.stages import HandlerRun
from serving.telemetry.logs import ACCESS
from serving.telemetry.traces import Tracer
from tests.support.fleet.collector import attributes_of, running_collector
from tests.support.h2_server import server_inside
from tests.support.raw import CLASSIFY, GET_MODEL, STREAM, TIMEOUT_S, WATCH, ask
from tests.support.servers import free_address, on_both, wait_until
from tests.support.wire import Connection

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
TOKEN = "a-token-of-some-length"


@pytest.fixture
def lines(caplog):
    """Yields a function that returns the access lines so far."""
    with caplog.at_level(logging.INFO, ACCESS):
        yield lambda: [vars(each)["fields"] for each in caplog.records if each.name == ACCESS]


@pytest.fixture
def logging_server(classifier, transport):
    with server_inside(classifier, transport=transport, access_log=1.0) as server:
        yield server


def id_of(done):
    """The id that came back with a call."""
    return dict(done.trailing_metadata()).get("x-request-id")


def test_ids_are_logged_and_come_back(logging_server, images, lines):
    data = encode_request(images[0].tobytes())
    done = ask(logging_server, data, x_request_id="order-17", traceparent=TRACEPARENT)
    assert done.code() is grpc.StatusCode.OK
    assert id_of(done) == "order-17"
    (line,) = lines()
    assert set(line) == {
        "method", "status", "duration_s", "peer", "request_id", "trace_id", "parent_id"
    }  # fmt: skip
    assert (line["method"], line["status"]) == (CLASSIFY, "OK")
    assert (line["request_id"], line["trace_id"]) == ("order-17", TRACE)
    assert line["parent_id"] == PARENT
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert 0 < line["duration_s"] < TIMEOUT_S


def test_missing_and_bad_ids_are_replaced(logging_server, images, lines):
    data = encode_request(images[0].tobytes())
    bad = ["", "with a space", "x" * 129]
    done = [ask(logging_server, data)]
    done += [ask(logging_server, data, x_request_id=id_, traceparent=id_) for id_ in bad]
    logged = lines()
    assert [id_of(one) for one in done] == [line["request_id"] for line in logged]
    assert {len(line["request_id"]) for line in logged} == {16}
    assert not any("trace_id" in line for line in logged)
    assert len({line["request_id"] for line in logged}) == len(logged)


@on_both
def test_calls_of_every_kind_are_logged(logging_server, images, lines):
    calls = [
        ("a", CLASSIFY, b"bad", "INVALID_ARGUMENT"),
        ("b", GET_MODEL, b"bad", "OK"),
        ("c", STREAM, encode_request(images[0].tobytes()), "OK"),
        ("d", STREAM, b"bad", "INVALID_ARGUMENT"),
        ("e", CLASSIFY, encode_request(images[:300].tobytes()), "OK"),
        ("f", "/digits.v1.DigitClassifier/Nope", b"", "UNIMPLEMENTED"),
    ]
    for id_, path, data, status in calls:
        done = ask(logging_server, data, path=path, x_request_id=id_)
        assert (done.code().name, id_of(done)) == (status, id_)
    assert [(line["request_id"], line["method"], line["status"]) for line in lines()] == [
        (id_, path, status) for id_, path, _, status in calls
    ]


@on_both
def test_calls_whose_callers_leave_are_logged(logging_server, images, lines):
    with grpc.insecure_channel(logging_server.address) as channel:
        watching = channel.unary_stream(WATCH)
        cancelled = watching(b"", metadata=(("x-request-id", "cancelled"),))
        next(cancelled)
        cancelled.cancel()
        next(watching(b"", metadata=(("x-request-id", "closed"),)))
    ask(logging_server, encode_request(images[0].tobytes()))
    wait_until(lambda: len(lines()) == 3)
    logged = {line["request_id"]: line for line in lines()}
    for name in ("cancelled", "closed"):
        assert (logged[name]["method"], logged[name]["status"]) == (WATCH, "CANCELLED")


def test_requests_that_are_not_grpcs_are_not_logged(logging_server, lines):
    with Connection(logging_server.address, TIMEOUT_S) as connection:
        connection.open()
        connection.call(1, b"", content_type="text/html")
        assert connection.reply(1).headers[":status"] == "415"
    assert lines() == []


@on_both
def test_refused_tokens_are_logged(classifier, transport, lines):
    security = SecurityConfig(tokens=TOKEN)
    with server_inside(
        classifier, transport=transport, access_log=1.0, security=security
    ) as server:
        assert id_of(ask(server, b"", GET_MODEL, x_request_id="a")) == "a"
        ask(server, b"", GET_MODEL, x_request_id="b", authorization=f"Bearer {TOKEN}")
    logged = [(line["request_id"], line["status"]) for line in lines()]
    assert logged == [("a", "UNAUTHENTICATED"), ("b", "OK")]


@pytest.mark.parametrize(("share", "logged"), [(1e-9, ["INVALID_ARGUMENT"]), (0.0, [])])
def test_failures_are_logged_whatever_the_share_and_nothing_without_one(
    classifier, images, lines, share, logged
):
    with server_inside(classifier, access_log=share) as server:
        for _ in range(20):
            done = ask(server, encode_request(images[0].tobytes()), x_request_id="a")
            assert id_of(done) == ("a" if share else None)
        ask(server, b"bad")
    assert [line["status"] for line in lines()] == logged


# Spans of calls, as a real collector of OpenTelemetry's gets them by OTLP


@pytest.fixture
def collector():
    with running_collector() as collector:
        yield collector


def traced_server(classifier, endpoint, **options):
    """A server whose spans have all arrived once the block has ended."""
    return server_inside(classifier, otlp_endpoint=endpoint, **options)


def call(server, data, path=CLASSIFY, flags="01"):
    return ask(server, data, path, traceparent=f"00-{TRACE}-{PARENT}-{flags}")


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


def test_phases_of_a_handler_are_spans_below_the_calls(collector):
    spans, endpoint = collector
    run = HandlerRun((2.0, 5.0, "model", "1", 1))
    run.steps = [("preprocess", 2.0, 3.0), ("run", 3.5, 4.0), ("postprocess", 4.5, 5.0)]
    tracer = Tracer(endpoint)
    tracer.record("Infer", 1.0, {"traceparent": TRACEPARENT}, {}, run, is_error=False)
    tracer.close()
    call, steps = spans.span("Infer"), [spans.span(name) for name, _, _ in run.steps]
    assert not call.events
    assert {each.parent_span_id for each in steps} == {call.span_id}
    assert {each.trace_id.hex() for each in steps} == {TRACE}
    assert attributes_of(call)["queue.seconds"] == 1.0
    moments = [(each.start_time_unix_nano - call.start_time_unix_nano,
                each.end_time_unix_nano - each.start_time_unix_nano) for each in steps]  # fmt: skip
    seconds = [(start / 1e9, length / 1e9) for start, length in moments]
    assert seconds == [(1.0, 1.0), (2.5, 0.5), (3.5, 0.5)]


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
        headers = {"content-type": "application/json", "traceparent": TRACEPARENT}
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
        RemoteDigits(client).classify(images[:1])
        client.infer("digits", {"images": images[:1]})
        with pytest.raises(ModelNotFound):
            client.infer("no-such-model", {"images": images[:1]})
    ours = ended.get_finished_spans()
    assert [(span.name, span.kind.name) for span in ours] == [
        ("digits.v1.DigitClassifier/GetModel", "CLIENT"),
        ("digits.v1.DigitClassifier/Classify", "CLIENT"),
        ("inference.GRPCInferenceService/ModelInfer", "CLIENT"),
    ]
    parents = {span.parent_span_id.hex() for span in spans.spans}
    assert parents >= {trace.format_span_id(span.context.span_id) for span in ours}


def test_clients_send_the_span_that_is_active(classifier, collector, images):
    spans, endpoint = collector
    tracer = TracerProvider().get_tracer("test")
    with (
        traced_server(classifier, endpoint) as server,
        Classifier.connect(server.address) as client,
    ):
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
