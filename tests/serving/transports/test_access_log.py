"""Log lines of calls: ids come in, go on and come back; one event is one line of JSON."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving.images import Images
from serving.protocols.digits_v1.wire import encode_request
from tests.support.h2_connection import Connection
from tests.support.raw import CLASSIFY, TIMEOUT_S
from tests.support.servers import RunningServer, on_both, running_server

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
STREAM = "/digits.v1.DigitClassifier/ClassifyStream"
GET_MODEL = "/digits.v1.DigitClassifier/GetModel"
WATCH = "/grpc.health.v1.Health/Watch"
TOKEN = "a-token-of-some-length"


@pytest.fixture
def options(transport: str) -> tuple[str, ...]:
    return ("--transport", transport, "--log-format", "json")


@pytest.fixture
def logging_server(models: Path, options: tuple[str, ...]) -> Iterator[RunningServer]:
    with running_server(models, *options, "--access-log", "1") as server:
        yield server


def call(server: RunningServer, data: bytes, path: str = CLASSIFY, **metadata: str) -> Any:
    """Make one call to its end; return it with its id in the trailers."""
    sent = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
    with grpc.insecure_channel(server.address) as channel:
        method: Any = channel.unary_unary(path)
        future = method.future(data, timeout=TIMEOUT_S, metadata=sent)
        future.exception()
        return future


def id_of(done: Any) -> str | None:
    """The id that came back with a call."""
    return dict(done.trailing_metadata()).get("x-request-id")


def access_lines(server: RunningServer) -> list[dict[str, Any]]:
    """Stop the server and read the access lines of its log; every line must be JSON."""
    assert server.stop() == 0
    assert server.process.stderr is not None
    lines = [json.loads(line) for line in server.process.stderr.read().splitlines()]
    return [line for line in lines if line["logger"] == "serving.access"]


def test_ids_are_logged_and_come_back(logging_server: RunningServer, images: Images) -> None:
    data = encode_request(images[0].tobytes())
    done = call(logging_server, data, x_request_id="order-17", traceparent=TRACEPARENT)
    assert done.code() is grpc.StatusCode.OK
    assert id_of(done) == "order-17"
    (line,) = access_lines(logging_server)
    assert set(line) == {
        "time", "level", "logger", "message", "method", "status", "duration_s", "peer",
        "request_id", "trace_id", "parent_id",
    }  # fmt: skip
    assert (line["method"], line["status"]) == (CLASSIFY, "OK")
    assert (line["request_id"], line["trace_id"]) == ("order-17", TRACE)
    assert line["parent_id"] == "00f067aa0ba902b7"
    assert line["peer"].startswith("ipv4:127.0.0.1:")
    assert 0 < line["duration_s"] < TIMEOUT_S


def test_missing_and_bad_ids_are_replaced(logging_server: RunningServer, images: Images) -> None:
    data = encode_request(images[0].tobytes())
    bad = ["", "with a space", "x" * 129]
    done = [call(logging_server, data)]
    done += [call(logging_server, data, x_request_id=id_, traceparent=id_) for id_ in bad]
    lines = access_lines(logging_server)
    assert [id_of(one) for one in done] == [line["request_id"] for line in lines]
    assert {len(line["request_id"]) for line in lines} == {16}
    assert not any("trace_id" in line for line in lines)
    assert len({line["request_id"] for line in lines}) == len(lines)


@on_both
def test_calls_of_every_kind_are_logged(logging_server: RunningServer, images: Images) -> None:
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
    lines = access_lines(logging_server)
    assert [(line["request_id"], line["method"], line["status"]) for line in lines] == [
        (id_, path, status) for id_, path, _, status in calls
    ]


@on_both
def test_calls_whose_callers_leave_are_logged(
    logging_server: RunningServer, images: Images
) -> None:
    with grpc.insecure_channel(logging_server.address) as channel:
        watching: Any = channel.unary_stream(WATCH)
        cancelled = watching(b"", metadata=(("x-request-id", "cancelled"),))
        next(cancelled)
        cancelled.cancel()
        next(watching(b"", metadata=(("x-request-id", "closed"),)))
    call(logging_server, encode_request(images[0].tobytes()))
    lines = {line["request_id"]: line for line in access_lines(logging_server)}
    for name in ("cancelled", "closed"):
        assert (lines[name]["method"], lines[name]["status"]) == (WATCH, "CANCELLED")
    assert len(lines) == 3


def test_requests_that_are_not_grpcs_are_not_logged(models: Path) -> None:
    options = ("--transport", "h2", "--log-format", "json", "--access-log", "1")
    with running_server(models, *options) as server:
        with Connection(server.address, TIMEOUT_S) as connection:
            connection.open()
            connection.call(1, b"", content_type="text/html")
            assert connection.reply(1).headers[":status"] == "415"
        assert access_lines(server) == []


@on_both
def test_refused_tokens_are_logged(models: Path, options: tuple[str, ...], tmp_path: Path) -> None:
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    more = ("--access-log", "1", "--token-file", str(tokens))
    with running_server(models, *options, *more) as server:
        assert id_of(call(server, b"", GET_MODEL, x_request_id="a")) == "a"
        call(server, b"", GET_MODEL, x_request_id="b", authorization=f"Bearer {TOKEN}")
        lines = [(line["request_id"], line["status"]) for line in access_lines(server)]
    assert lines == [("a", "UNAUTHENTICATED"), ("b", "OK")]


def test_failures_are_logged_whatever_the_share(
    models: Path, options: tuple[str, ...], images: Images
) -> None:
    with running_server(models, *options, "--access-log", "1e-9") as server:
        for _ in range(20):
            call(server, encode_request(images[0].tobytes()))
        call(server, b"bad")
        assert [line["status"] for line in access_lines(server)] == ["INVALID_ARGUMENT"]


def test_nothing_is_logged_unless_asked_for(
    models: Path, options: tuple[str, ...], images: Images
) -> None:
    with running_server(models, *options) as server:
        done = call(server, encode_request(images[0].tobytes()), x_request_id="a")
        assert id_of(done) is None
        assert access_lines(server) == []
