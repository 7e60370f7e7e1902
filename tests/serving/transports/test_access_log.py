"""Log lines of calls: ids come in, go on and come back; one event is one line of JSON."""

import logging

import grpc
import pytest

from serving.config import SecurityConfig
from serving.digits.wire import encode_request
from serving.telemetry.logs import ACCESS
from tests.support.h2_connection import Connection
from tests.support.h2_server import server_inside
from tests.support.processes import wait_until
from tests.support.raw import CLASSIFY, TIMEOUT_S
from tests.support.servers import on_both

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
STREAM = "/digits.v1.DigitClassifier/ClassifyStream"
GET_MODEL = "/digits.v1.DigitClassifier/GetModel"
WATCH = "/grpc.health.v1.Health/Watch"
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


def call(server, data, path=CLASSIFY, **metadata):
    """Make one call to its end; return it with its id in the trailers."""
    sent = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
    with grpc.insecure_channel(server.address) as channel:
        future = channel.unary_unary(path).future(data, timeout=TIMEOUT_S, metadata=sent)
        future.exception()
        return future


def id_of(done):
    """The id that came back with a call."""
    return dict(done.trailing_metadata()).get("x-request-id")


def test_ids_are_logged_and_come_back(logging_server, images, lines):
    data = encode_request(images[0].tobytes())
    done = call(logging_server, data, x_request_id="order-17", traceparent=TRACEPARENT)
    assert done.code() is grpc.StatusCode.OK
    assert id_of(done) == "order-17"
    (line,) = lines()
    assert set(line) == {
        "method", "status", "duration_s", "peer", "request_id", "trace_id", "parent_id"
    }  # fmt: skip
    assert (line["method"], line["status"]) == (CLASSIFY, "OK")
    assert (line["request_id"], line["trace_id"]) == ("order-17", TRACE)
    assert line["parent_id"] == "00f067aa0ba902b7"
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert 0 < line["duration_s"] < TIMEOUT_S


def test_missing_and_bad_ids_are_replaced(logging_server, images, lines):
    data = encode_request(images[0].tobytes())
    bad = ["", "with a space", "x" * 129]
    done = [call(logging_server, data)]
    done += [call(logging_server, data, x_request_id=id_, traceparent=id_) for id_ in bad]
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
        done = call(logging_server, data, path=path, x_request_id=id_)
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
    call(logging_server, encode_request(images[0].tobytes()))
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
        assert id_of(call(server, b"", GET_MODEL, x_request_id="a")) == "a"
        call(server, b"", GET_MODEL, x_request_id="b", authorization=f"Bearer {TOKEN}")
    logged = [(line["request_id"], line["status"]) for line in lines()]
    assert logged == [("a", "UNAUTHENTICATED"), ("b", "OK")]


@pytest.mark.parametrize(("share", "logged"), [(1e-9, ["INVALID_ARGUMENT"]), (0.0, [])])
def test_failures_are_logged_whatever_the_share_and_nothing_without_one(
    classifier, images, lines, share, logged
):
    with server_inside(classifier, access_log=share) as server:
        for _ in range(20):
            done = call(server, encode_request(images[0].tobytes()), x_request_id="a")
            assert id_of(done) == ("a" if share else None)
        call(server, b"bad")
    assert [line["status"] for line in lines()] == logged
