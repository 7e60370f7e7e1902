"""The record of a call, whole: its line, and its span, as their readers get them."""

import logging
from types import SimpleNamespace

import pytest

from serving.batching.run import NEVER, Ran
from serving.config import ServerConfig
from serving.errors import ConfigurationError
from serving.telemetry import access_log, traces
from serving.telemetry.access_log import AccessLog, open_access_log
from serving.telemetry.logs import ACCESS
from serving.telemetry.traces import Tracer
from tests.support.fakes import FakeClock

INFER = "/inference.GRPCInferenceService/ModelInfer"
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"
IDS = {"x-request-id": "mine"}


@pytest.fixture
def clock(monkeypatch):
    """The time of both modules: 1,000 s since 1970 at their clock's 100 s."""
    clock = FakeClock()
    clock.advance(100.0)
    time = SimpleNamespace(
        monotonic=clock,
        monotonic_ns=lambda: round(clock() * 1e9),
        time_ns=lambda: round((clock() + 900.0) * 1e9),
    )
    monkeypatch.setattr(access_log, "time", time)
    monkeypatch.setattr(traces, "time", time)
    return clock


@pytest.fixture
def lines(caplog):
    """The fields of each line."""
    caplog.set_level(logging.INFO, ACCESS)
    return lambda: [record.fields for record in caplog.records]


def ended(log, clock, status="OK", **metadata):
    call = log.begin(INFER, "ipv4:127.0.0.1:5", metadata)
    clock.advance(0.25)
    log.end(call, status)


def test_line_is_whole(clock, lines):
    log = AccessLog(1.0)
    call = log.begin(INFER, "ipv4:10.0.0.1:5", IDS | {"traceparent": TRACEPARENT})
    clock.advance(1.2345678)
    log.end(call, "NOT_FOUND")
    assert lines() == [{
        "method": INFER, "status": "NOT_FOUND", "duration_s": 1.234568, "peer": "ipv4:10.0.0.1:5",
        "request_id": "mine", "trace_id": TRACE, "parent_id": PARENT,
    }]  # fmt: skip


@pytest.mark.parametrize(
    ("sent", "is_kept"),
    [("mine", True), ("x" * 128, True), ("x" * 129, False), ("", False), ("a b", False),
     ("ä", False)],
)  # fmt: skip
def test_malformed_ids_are_made_new(sent, is_kept, clock, lines):
    ended(AccessLog(1.0), clock, **{"x-request-id": sent, "traceparent": TRACEPARENT[:-1]})
    (fields,) = lines()
    assert (fields["request_id"] == sent) == is_kept
    assert is_kept or len(fields["request_id"]) == 16
    assert "trace_id" not in fields


def test_share_of_the_good_and_all_others_are_written(clock, lines, monkeypatch):
    drawn = iter([0.1, 0.3, 0.29, 0.31])
    monkeypatch.setattr(access_log, "random", SimpleNamespace(random=lambda: next(drawn)))
    log = AccessLog(0.3)
    for status in ("OK", "OK", "OK", "UNAVAILABLE", "OK", "CANCELLED"):
        ended(log, clock, status)
    assert [fields["status"] for fields in lines()] == ["OK", "OK", "UNAVAILABLE", "CANCELLED"]
    ended(AccessLog(0.0), clock, "UNAVAILABLE")
    assert len(lines()) == 4


def test_lines_of_a_second_are_bounded(clock, lines):
    log = AccessLog(1.0)
    calls = [log.begin(INFER, "", {}) for _ in range(130)]
    for number in range(2):
        for call in calls:
            log.end(call, "OK")
        assert len(lines()) == 100 * (number + 1)
        clock.advance(1.0)


# Spans


class Recorder(list):
    """A tracer that keeps what it gets."""

    is_closed = False

    def record(self, *args, **options):
        self.append((*args, options))

    def close(self):
        self.is_closed = True


def traced(peer, method, status, http_status=None, route=""):
    recorder = Recorder()
    log = AccessLog(0.0, recorder)
    call = log.begin(
        method, peer, IDS | {"traceparent": TRACEPARENT, "tracestate": "a=b", "x": "y"}
    )
    call.route = route
    log.end(call, status, http_status)
    log.close()
    assert recorder.is_closed
    return recorder


def test_grpc_call_is_recorded_whole(clock):
    [record] = traced("ipv6:%5B::1%5D:5", INFER, "UNIMPLEMENTED")
    assert record == (
        INFER[1:], 100.0, {"traceparent": TRACEPARENT, "tracestate": "a=b"},
        {"request_id": "mine", "network.peer.address": "::1", "network.peer.port": 5,
         "rpc.system": "grpc", "rpc.service": "inference.GRPCInferenceService",
         "rpc.method": "ModelInfer", "rpc.grpc.status_code": 12},
        NEVER, {"is_error": True},
    )  # fmt: skip


def test_http_call_is_recorded_whole(clock):
    method, route = "POST /v2/models/iris/infer", "/v2/models/{name}/infer"
    [record] = traced("unix:/run/it", method, "INVALID_ARGUMENT", 400, route)
    assert record == (
        f"POST {route}", 100.0, {"traceparent": TRACEPARENT, "tracestate": "a=b"},
        {"request_id": "mine", "http.request.method": "POST", "url.path": "/v2/models/iris/infer",
         "http.route": route, "http.response.status_code": 400},
        NEVER, {"is_error": False},
    )  # fmt: skip
    [record] = traced("unix:/run/it", "GET /nowhere", "NOT_FOUND", 404)
    assert record[0] == "GET"


@pytest.mark.parametrize(
    ("status", "is_error"),
    [("OK", False), ("CANCELLED", False), ("UNKNOWN", True), ("INVALID_ARGUMENT", False),
     ("DEADLINE_EXCEEDED", True), ("NOT_FOUND", False), ("RESOURCE_EXHAUSTED", False),
     ("UNIMPLEMENTED", True), ("INTERNAL", True), ("UNAVAILABLE", True), ("DATA_LOSS", True),
     ("UNAUTHENTICATED", False)],
)  # fmt: skip
def test_servers_faults_are_errors(status, is_error, clock):
    [record] = traced("", INFER, status)
    assert record[-1] == {"is_error": is_error}


@pytest.mark.parametrize("probe", ["/grpc.health.v1.Health/Check", "GET /v2/health/live"])
def test_probes_have_no_span(probe, clock):
    assert traced("", probe, "OK", 200 if " " in probe else None) == []


def test_log_is_open_if_somebody_reads_it(monkeypatch):
    made = []
    monkeypatch.setattr(access_log, "Tracer", made.append)
    assert open_access_log(ServerConfig()) is None
    assert open_access_log(ServerConfig(access_log=0.5)) is not None
    assert made == []
    assert open_access_log(ServerConfig(otlp_endpoint="http://here:1")) is not None
    assert made == ["http://here:1"]


@pytest.fixture
def exported(monkeypatch, clock):
    """The spans that a collector gets, and how it was opened."""
    from opentelemetry.exporter.otlp.proto.grpc import trace_exporter
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter, opened = InMemorySpanExporter(), []

    def open_exporter(endpoint, insecure):
        opened.append((endpoint, insecure))
        return exporter

    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", open_exporter)
    return exporter, opened


@pytest.mark.parametrize("endpoint", ["here:4317", "ftp://here", "http://", ""])
def test_endpoint_is_a_url(endpoint):
    with pytest.raises(ConfigurationError, match=r"^expected an OTLP endpoint such as http://127"):
        Tracer(endpoint)


RUN: Ran = (102.0, 102.5, "iris", "3", 7)
ATTRIBUTES = {"a": 1}


def span_of(exported, run, metadata=None, *, is_error=False, endpoint="http://here:1"):
    exporter, opened = exported
    tracer = Tracer(endpoint)
    tracer.record("a name", 101.0, metadata or {}, ATTRIBUTES, run, is_error=is_error)
    tracer.close()
    assert opened == [(endpoint, endpoint.startswith("http:"))]
    *steps, span = exporter.get_finished_spans()
    return span, steps


def test_span_is_whole(exported, clock):
    clock.advance(3.0)
    span, steps = span_of(exported, RUN, {"traceparent": TRACEPARENT}, is_error=True)
    assert (span.name, span.kind.name, span.status.status_code.name) == (
        "a name", "SERVER", "ERROR")  # fmt: skip
    assert (span.start_time, span.end_time > span.start_time) == (1001 * 10**9, True)
    assert dict(span.attributes) == ATTRIBUTES | {
        "model.name": "iris", "model.version": "3", "batch.rows": 7, "queue.seconds": 1.0,
    }  # fmt: skip
    assert [(each.name, each.timestamp) for each in span.events] == [
        ("run started", 1002 * 10**9), ("run finished", 1002_500_000_000)]  # fmt: skip
    assert f"{span.context.trace_id:032x}" == TRACE
    assert f"{span.parent.span_id:016x}" == PARENT
    assert steps == []


def test_call_without_a_run_has_a_span_of_its_own(exported):
    span, _ = span_of(exported, NEVER, endpoint="https://here:1")
    assert (dict(span.attributes), span.events, span.parent) == (ATTRIBUTES, (), None)
    assert span.status.status_code.name == "UNSET"
    assert span.resource.attributes["service.name"] == "digit-serving"


def test_name_of_the_environment_wins(exported, monkeypatch):
    monkeypatch.setenv("OTEL_SERVICE_NAME", "own")
    span, _ = span_of(exported, NEVER)
    assert span.resource.attributes["service.name"] == "own"


def test_unsampled_trace_gets_no_span(exported):
    exporter, _ = exported
    tracer = Tracer("http://here:1")
    tracer.record("x", 101.0, {"traceparent": TRACEPARENT[:-1] + "0"}, {}, RUN, is_error=False)
    tracer.close()
    assert exporter.get_finished_spans() == ()


def test_steps_of_a_handler_are_spans_below(exported):
    class Stepped(tuple[float, float, str, str, int]):
        steps = (("preprocess", 101.5, 101.75), ("model", 102.0, 102.5))

    span, steps = span_of(exported, Stepped(RUN))
    assert [(each.name, each.start_time, each.end_time) for each in steps] == [
        ("preprocess", 1001_500_000_000, 1001_750_000_000),
        ("model", 1002_000_000_000, 1002_500_000_000),
    ]
    assert {each.parent.span_id for each in steps} == {span.context.span_id}
    assert span.events == ()
