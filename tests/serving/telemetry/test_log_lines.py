"""Log lines, whole, and how they are set up: levels, waits, and threads."""

import io
import json
import logging
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from serving.telemetry import logs
from serving.telemetry.traces import Tracer


@pytest.fixture(autouse=True)
def restored():
    names = None, logs.ACCESS, "grpc._cython.cygrpc"
    before = [(logging.getLogger(name), logging.getLogger(name).level) for name in names]
    handlers = logging.getLogger().handlers[:]
    yield
    logging.getLogger().handlers = handlers
    for logger, level in before:
        logger.setLevel(level)


@pytest.fixture
def record(monkeypatch):
    """An event on 14 November 2023, in a place an hour and a half east of Greenwich."""
    monkeypatch.setenv("TZ", "XYZ-1:30")
    time.tzset()
    found: Any = logging.LogRecord("serving.a", logging.WARNING, "f", 1, "it %s", ("is",), None)
    found.created = 1_700_000_000.1239
    yield found
    monkeypatch.undo()
    time.tzset()


def test_line_of_text_is_whole(record):
    line = "2023-11-14T23:43:20.123+01:30 WARNING serving.a: it is"
    assert logs._TextFormatter().format(record) == line
    record.fields = {"worker": 1, "id": "a\n"}
    assert logs._TextFormatter().format(record) == line + r" worker=1 id=a\n"


def test_line_of_json_is_whole(record):
    event = {
        "time": "2023-11-14T23:43:20.123+01:30", "level": "warning", "logger": "serving.a",
        "message": "it is",
    }  # fmt: skip
    assert json.loads(logs._JsonFormatter().format(record)) == event
    record.fields = {"worker": 1}
    assert json.loads(logs._JsonFormatter().format(record)) == event | {"worker": 1}


def test_call_has_no_fields_of_its_own_at_first():
    assert logs.request_fields.get() == {}


@pytest.mark.parametrize(
    ("options", "level"), [((), "INFO"), (("debug",), "DEBUG"), (("error",), "ERROR")]
)
def test_logs_have_one_handler_and_a_level(options, level, monkeypatch):
    monkeypatch.setattr(sys, "stderr", stream := io.StringIO())
    for _ in range(2):
        logs.setup("text", *options)
        root = logging.getLogger()
        (handler,) = root.handlers
        assert isinstance(handler, logs._Handler)
        assert logging.getLevelName(root.level) == level
    assert logging.getLogger(logs.ACCESS).level == logging.INFO, "it has an option of its own"
    assert logging.getLogger("grpc._cython.cygrpc").level == logging.CRITICAL
    logging.getLogger("serving.a").error("now")
    root.handlers[0].flush()
    assert stream.getvalue().endswith(" ERROR   serving.a: now\n"), "without the worker's number"


class Noted(threading.Thread):
    """A thread whose kind and waits are noted."""

    made: list[Any]
    waits: list[Any]

    def start(self):
        self.made.append((self.name, self.daemon))
        super().start()

    def join(self, timeout=None):
        self.waits.append(timeout)
        super().join(timeout)


@pytest.fixture
def threads(monkeypatch):
    monkeypatch.setattr(Noted, "made", [], raising=False)
    monkeypatch.setattr(Noted, "waits", [], raising=False)
    monkeypatch.setattr(threading, "Thread", Noted)
    return Noted


def test_nobody_waits_for_a_log_for_more_than_a_second(threads, monkeypatch):
    waits = []

    class Event(threading.Event):
        def wait(self, timeout=None):
            waits.append(timeout)
            return super().wait(timeout)

    handler = logs._Handler(io.StringIO(), {})
    assert threads.made == [("log-writer", True)]
    monkeypatch.setattr(threading, "Event", Event)
    handler.flush()
    assert waits == [1.0]


def test_line_is_printed_within_a_second_or_not_waited_for(threads):
    stream = io.StringIO()
    assert logs.print_line("the reason", stream)
    assert stream.getvalue() == "the reason\n"
    is_daemon = [is_daemon for _, is_daemon in threads.made]
    assert (is_daemon, threads.waits) == ([True], [1.0])
    assert logs.print_line("nobody sees it", None)
    assert len(threads.made) == 1


def test_line_is_out_at_once_although_its_stream_is_buffered():
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw)
    assert logs.print_line("the reason", stream)
    assert raw.getvalue() == b"the reason\n"
    stream.detach()


def test_rest_of_the_spans_has_three_seconds():
    done: list[Any] = []
    tracer: Any = Tracer.__new__(Tracer)
    tracer._provider = SimpleNamespace(
        force_flush=done.append, shutdown=lambda: done.append("shutdown")
    )
    tracer.close()
    assert done == [3000, "shutdown"]


def test_spans_are_sent_by_who_closes_the_tracer(monkeypatch):
    """Not at the program's exit, which could wait for a collector that is gone."""
    import opentelemetry.sdk.trace as sdk
    from opentelemetry.exporter.otlp.proto.grpc import trace_exporter
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    given: list[Any] = []

    class Provider(sdk.TracerProvider):
        def __init__(self, **options):
            given.append(options)
            super().__init__(**options)

    monkeypatch.setattr(sdk, "TracerProvider", Provider)
    monkeypatch.setattr(trace_exporter, "OTLPSpanExporter", lambda *_, **__: InMemorySpanExporter())
    tracer = Tracer("http://127.0.0.1:1")
    (options,) = given
    assert options.pop("shutdown_on_exit") is False
    assert options["resource"].attributes["service.name"] == "digit-serving"
    tracer._provider.shutdown()
