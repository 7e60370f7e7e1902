"""Log lines of calls: ids come in, go on and come back; one event is one line of JSON."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving.images import Images
from serving.protocols.digits_v1.wire import encode_request
from tests.support.raw import CLASSIFY, TIMEOUT_S
from tests.support.servers import RunningServer, running_server

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
TRACEPARENT = f"00-{TRACE}-00f067aa0ba902b7-01"
STREAM = "/digits.v1.DigitClassifier/ClassifyStream"


@pytest.fixture
def logging_server(models: Path) -> Iterator[RunningServer]:
    options = ("--transport", "grpcio", "--log-format", "json", "--access-log", "1")
    with running_server(models, *options) as server:
        yield server


def call(server: RunningServer, data: bytes, path: str = CLASSIFY, **metadata: str) -> Any:
    """Make one call to its end; return it with its id in the trailers."""
    sent = tuple((name.replace("_", "-"), value) for name, value in metadata.items())
    with grpc.insecure_channel(server.address) as channel:
        method: Any = channel.unary_unary(path)
        future = method.future(data, timeout=TIMEOUT_S, metadata=sent)
        future.exception()
        return future


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
    assert ("x-request-id", "order-17") in tuple(done.trailing_metadata())
    (line,) = access_lines(logging_server)
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
    for one, line in zip(done, lines, strict=True):
        assert ("x-request-id", line["request_id"]) in tuple(one.trailing_metadata())
        assert len(line["request_id"]) == 16
        assert "trace_id" not in line
    assert len({line["request_id"] for line in lines}) == len(lines)


def test_failures_and_streams_are_logged(logging_server: RunningServer, images: Images) -> None:
    call(logging_server, b"bad", x_request_id="a")
    call(logging_server, b"bad", path="/digits.v1.DigitClassifier/GetModel", x_request_id="b")
    call(logging_server, encode_request(images[0].tobytes()), path=STREAM, x_request_id="c")
    lines = access_lines(logging_server)
    assert [(line["request_id"], line["status"]) for line in lines] == [
        ("a", "INVALID_ARGUMENT"), ("b", "OK"), ("c", "OK"),
    ]  # fmt: skip


def test_failures_are_logged_whatever_the_share(models: Path, images: Images) -> None:
    options = ("--transport", "grpcio", "--log-format", "json", "--access-log", "1e-9")
    with running_server(models, *options) as server:
        for _ in range(20):
            call(server, encode_request(images[0].tobytes()))
        call(server, b"bad")
        assert [line["status"] for line in access_lines(server)] == ["INVALID_ARGUMENT"]


def test_nothing_is_logged_unless_asked_for(models: Path, images: Images) -> None:
    with running_server(models, "--transport", "grpcio", "--log-format", "json") as server:
        done = call(server, encode_request(images[0].tobytes()), x_request_id="a")
        assert not [key for key, _ in done.trailing_metadata() if key == "x-request-id"]
        assert access_lines(server) == []
