"""The duties of a gRPC server over HTTP/2, frame by frame, against the `h2` transport."""

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import grpc
import numpy as np
import pytest
from hyperframe.frame import (
    DataFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

import serving
from serving import Classifier
from serving.digits.wire import encode_request
from serving.errors import Unavailable
from serving.protocols.pb.digits.v1 import digits_pb2
from serving.tensors import DIGITS
from serving.transports import loop
from tests.support.h2_connection import (
    PREFACE,
    Connection,
    Reply,
    message,
    request_headers,
)
from tests.support.h2_server import server_inside
from tests.support.raw import CLASSIFY, Raw
from tests.support.servers import connected, running_server

MODELS = Path(serving.__file__).parent / "digits" / "pretrained"
TIMEOUT_S = 20.0
STREAM = "/digits.v1.DigitClassifier/ClassifyStream"
MAX_MESSAGE_BYTES = 2 * 4096 * DIGITS.image_bytes + 4096
OK, INVALID, EXHAUSTED, UNIMPLEMENTED = (
    code.value[0]
    for code in (
        grpc.StatusCode.OK,
        grpc.StatusCode.INVALID_ARGUMENT,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        grpc.StatusCode.UNIMPLEMENTED,
    )
)
LATE = grpc.StatusCode.DEADLINE_EXCEEDED.value[0]
UNAVAILABLE = grpc.StatusCode.UNAVAILABLE.value[0]
PIXELS = np.random.default_rng(7).integers(0, 256, (4096, DIGITS.image_bytes), np.uint8)
REQUEST = message(encode_request(PIXELS[:1].tobytes()))


@pytest.fixture(scope="module")
def target():
    """A server of these tests' own; each leaves it as it was."""
    with running_server(MODELS, "--transport", "h2") as server:
        yield server


@pytest.fixture(scope="module")
def expected(target):
    """The framed answer to `REQUEST`, as grpcio's client gets it."""
    raw = Raw(target.address)
    answer = raw.classify(REQUEST[5:])
    raw.channel.close()
    return message(answer.SerializeToString())


@pytest.fixture
def connection(target, expected):
    """A connection that has been opened; afterwards the server still answers correctly."""
    with Connection(target.address, TIMEOUT_S) as connection:
        connection.open()
        yield connection
    assert_well(target, expected)


def assert_well(server, expected):
    with Connection(server.address, TIMEOUT_S) as connection:
        connection.open()
        connection.call(1, REQUEST)
        assert_answered(connection.reply(1), expected)


def assert_answered(reply, expected):
    assert reply.headers[":status"] == "200"
    assert reply.headers["content-type"] == "application/grpc"
    assert (reply.status, reply.body) == (OK, expected)
    assert reply.reset in (None, 0)


# Headers


@pytest.mark.parametrize(
    ("timeout", "status"),
    [
        *((f"{number}{unit}", OK) for number, unit in zip(
            ("1", "60", "600", "60000", "60000000", "99999999"), "HMSmun", strict=True)),
        *((f"99999999{unit}", OK) for unit in "HMSmu"),
        *((text, INVALID) for text in (
            "", "1", "S", "-1S", "+1S", "1.5S", "1 S", "1s", "1x", "1SS", "123456789S",
            "1e3S", "\u0661S", "0x1S", "infS")),
    ],
)  # fmt: skip
def test_timeouts_in_all_units_are_obeyed_and_malformed_ones_refused(
    connection, expected, timeout, status
):
    """Those of recognised calls, too; the last one's comes out of the table."""
    for stream, text in enumerate(("21S", "22S", "23S", timeout, timeout)):
        connection.call(2 * stream + 1, REQUEST, grpc_timeout=text)
        reply = connection.reply(2 * stream + 1)
        assert reply.status == (OK if stream < 3 else status)
        if reply.status == OK:
            assert_answered(reply, expected)


@pytest.mark.parametrize(
    ("outcome", "changed"),
    [
        *((OK, {"__authority": name}) for name in ("example.com:443", "[::1]:1", "a" * 1000)),
        (OK, {"__authority": None, "host": "somewhere"}),
        *((OK, {"content_type": kind}) for kind in (
            "application/grpc+proto", "application/grpc;charset=utf-8", "Application/gRPC")),
        (OK, {"x_trace_bin": "not base64 !", "x": "", "a": "b" * 4000}),
        *(("415", {"content_type": kind}) for kind in (
            "text/html", "application/grpcx", "application/grpc-web", "", None)),
        *(("405", {"__method": method}) for method in ("GET", "PUT", "HEAD", "OPTIONS")),
        (INVALID, {"te": None}),
        *((LATE, {"grpc_timeout": f"0{unit}"}) for unit in "Hn"),
        *((UNIMPLEMENTED, {"__path": path}) for path in (
            "/", "/x/Classify", CLASSIFY + "/", CLASSIFY + "?x=1", "/%00", "x", "//",
            "/../../etc/passwd", "/" + "y" * 10_000)),
    ],
)  # fmt: skip
def test_headers_decide_how_a_call_is_answered(connection, expected, outcome, changed):
    connection.call(1, REQUEST, **changed)
    reply = connection.reply(1)
    if outcome == OK:
        assert_answered(reply, expected)
    else:
        assert outcome in (reply.status, reply.headers[":status"])


@pytest.mark.parametrize("path", [CLASSIFY, STREAM])
def test_call_whose_message_does_not_arrive_ends_at_its_deadline(connection, path):
    head = connection.headers(1, request_headers(__path=path, grpc_timeout="50m"))
    connection.send(head, DataFrame(1, REQUEST[:50]))
    assert connection.reply(1).status == LATE


def test_messages_of_errors_are_percent_encoded(connection):
    request = digits_pb2.ClassifyRequest(images=b"x").SerializeToString()
    connection.call(1, message(request))
    reply = connection.reply(1)
    assert reply.status == INVALID
    assert reply.headers["grpc-message"] == "expected N x 784 bytes of images, got 1"
    infer = "/inference.GRPCInferenceService/ModelReady"
    connection.call(3, message(b"\x0a\x0a" + "%\u00e4\n\r\0 ~\u20ac".encode()), __path=infer)
    reply = connection.reply(3)
    text = reply.headers["grpc-message"]
    assert reply.status not in (OK, None)
    assert text.isascii()
    assert text.isprintable()
    connection.call(5, REQUEST)
    assert connection.reply(5).status == OK


# Messages


@pytest.mark.parametrize("cut", [1, 4, 5, 6, 100, len(REQUEST) - 1])
def test_end_of_the_stream_may_come_in_a_frame_of_its_own(connection, expected, cut):
    connection.send(
        connection.headers(1, request_headers()),
        DataFrame(1, b""),
        DataFrame(1, REQUEST[:cut]),
        DataFrame(1, b""),
    )
    connection.read(quiet_s=0.05)  # in reads of their own
    connection.send(DataFrame(1, REQUEST[cut:]), DataFrame(1, b"", flags=["END_STREAM"]))
    assert_answered(connection.reply(1), expected)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", UNIMPLEMENTED),
        (REQUEST * 2, UNIMPLEMENTED),
        (REQUEST + b"\0", UNIMPLEMENTED),
        (b"\0", INVALID),
        (b"\0\0\0\0", INVALID),
        (REQUEST[:-1], INVALID),
        (message(b"x", flag=1), UNIMPLEMENTED),
        (message(REQUEST, flag=2), INVALID),
        (b"\0\xff\xff\xff\xff\0", EXHAUSTED),
        (message(b"", length=MAX_MESSAGE_BYTES + 1), EXHAUSTED),
    ],
)
def test_anything_but_one_whole_message_is_refused(connection, body, status):
    connection.call(1, body)
    reply = connection.reply(1)
    assert reply.status == status
    assert reply.body == b""
    if body[:1] == b"\1":
        assert reply.headers["grpc-accept-encoding"] == "identity"


@pytest.mark.parametrize("path", [CLASSIFY, STREAM])
def test_message_that_is_cut_short_in_a_later_frame_is_refused(connection, path):
    head = connection.headers(1, request_headers(__path=path))
    connection.send(head, DataFrame(1, REQUEST[:100]))
    connection.send(DataFrame(1, REQUEST[100:-1], flags=["END_STREAM"]))
    assert connection.reply(1).status == INVALID


def test_call_without_a_body_is_refused(connection):
    connection.send(connection.headers(1, request_headers(), "END_STREAM"))
    assert connection.reply(1).status == UNIMPLEMENTED


def test_length_over_the_limit_is_refused_before_the_body_comes(connection):
    connection.send(connection.headers(1, request_headers()))
    connection.send(DataFrame(1, message(b"", length=MAX_MESSAGE_BYTES + 1)))
    assert connection.reply(1).status == EXHAUSTED  # and it is over though the call is not ended


def test_trailers_of_the_caller_end_its_call(connection, expected):
    connection.send(
        connection.headers(1, request_headers()),
        DataFrame(1, REQUEST),
        connection.headers(1, [("x-checksum", "1")], "END_STREAM"),
        connection.headers(3, request_headers()),
        connection.headers(3, [("x-checksum", "1")], "END_STREAM"),
        connection.headers(5, request_headers(__path=STREAM)),
        DataFrame(5, REQUEST),
        connection.headers(5, [("x-checksum", "1")], "END_STREAM"),
    )
    assert_answered(connection.reply(1), expected)
    assert connection.reply(3).status == UNIMPLEMENTED
    assert_answered(connection.reply(5), expected)


# Flow control


@pytest.mark.parametrize("path", [STREAM, CLASSIFY])
def test_messages_larger_than_the_windows_arrive(target, path):
    """As large as a request may be, sent as the server lets it."""
    num_messages = 10 if path == STREAM else 1
    request = message(encode_request(PIXELS.tobytes()))
    with Connection(target.address, TIMEOUT_S) as connection:
        connection.open_wide()
        connection.open_window(1, 1 << 20)
        connection.send(connection.headers(1, request_headers(__path=path)))
        connection.send_body(1, request * num_messages)
        reply = connection.reply(1)
        assert reply.status == OK
        first = reply.body[: len(reply.body) // num_messages]
        assert len(digits_pb2.ClassifyResponse.FromString(first[5:]).digits) == 4096


def test_answers_before_a_refusal_wait_for_the_callers_window(target, expected):
    with Connection(target.address, TIMEOUT_S) as connection:
        connection.open(INITIAL_WINDOW_SIZE=len(expected))
        connection.send(connection.headers(1, request_headers(__path=STREAM)))
        connection.send(DataFrame(1, REQUEST * 3 + message(b"\x0a\x01\x00")))
        connection.wait(lambda: bool(connection.replies.get(1, Reply()).body))
        connection.read()
        connection.send(WindowUpdateFrame(1, window_increment=10_000))
        reply = connection.reply(1)
        assert (reply.status, reply.body) == (INVALID, expected * 3)


# The connection


@pytest.mark.parametrize(
    "request_line",
    [b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/1.1\r\n\r\n", b"POST", b"\n", b"\x16\x03",
     b"POST / HTTP/1.1\r\nContent-Length: 4000000\r\n\r\n" + bytes(4_000_000)],
)  # fmt: skip
def test_other_protocols_get_one_clear_line_and_are_closed(target, request_line):
    with connected(target.address) as sock:
        sock.sendall(request_line)
        received = b"".join(iter(lambda: sock.recv(65_536), b""))
    assert b"HTTP/1.1 505" in received
    assert received.endswith(b"this port speaks gRPC, over HTTP/2 only\n")


def test_drain_says_goaway_twice_and_answers_what_was_accepted(expected):
    with (
        running_server(MODELS, "--transport", "h2") as server,
        Connection(server.address, TIMEOUT_S) as connection,
        Connection(server.address, TIMEOUT_S) as idle,
    ):
        idle.open()
        connection.open(INITIAL_WINDOW_SIZE=0)
        connection.call(1, REQUEST)  # accepted, and its answer waits for the window
        connection.send(  # their messages have not arrived
            connection.headers(3, request_headers()),
            connection.headers(5, request_headers()),
            DataFrame(5, REQUEST[:50]),
            connection.headers(7, request_headers(__path=STREAM)),
        )
        idle.read()
        connection.wait(lambda: 1 in connection.replies)
        server.process.terminate()
        connection.wait(lambda: len(connection.goaways) == 1)
        assert connection.goaways == [2**31 - 1]
        connection.call(9, REQUEST)
        for stream in (3, 5, 7, 9):
            assert connection.reply(stream).status == UNAVAILABLE
        connection.send(WindowUpdateFrame(1, window_increment=1000))
        assert_answered(connection.reply(1), expected)
        while not connection.read():
            pass
        while not idle.read():
            pass
        assert connection.goaways == [2**31 - 1, 9]
        assert idle.goaways == [2**31 - 1, 0]
        assert server.process.wait(TIMEOUT_S) == 0


def test_caller_who_sends_while_the_server_stops_is_not_reset(monkeypatch):
    """A reset would cost it the answers that it has not read; the stop ends once it has left."""
    monkeypatch.setattr(loop, "_PARTING_S", 10 * TIMEOUT_S)
    started = PREFACE + SettingsFrame(0).serialize()
    request = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with ExitStack() as stack, ThreadPoolExecutor() as pool:
        served = stack.enter_context(Classifier.load(MODELS / "digits", device="cpu"))
        with server_inside(served, http_port=0) as server:
            addresses = server.address, str(server.http_url)
            callers = [stack.enter_context(connected(address)) for address in addresses]
            server._transport.loop.drain(Unavailable("the server is shutting down"))
            for caller, first in zip(callers, (started, request), strict=True):
                caller.sendall(first)
                assert caller.recv(1000)
            assert server._transport.loop.drained.wait(TIMEOUT_S)
            ended = [pool.submit(read_to_the_end, caller) for caller in callers]
        for each in ended:
            each.result()


def read_to_the_end(caller):
    """Read all, send on as one who has not seen the end, and leave."""
    with caller:
        while caller.recv(65_536):
            pass
        for _ in range(3):
            caller.sendall(bytes(100))  # fails after a reset
            time.sleep(0.02)
        assert not caller.recv(1)


def test_connection_that_breaks_the_protocol_gets_a_goaway_and_is_closed(connection):
    connection.call(1, REQUEST)
    assert connection.reply(1).status == OK
    connection.send(b"\0\0\1\4\0\0\0\0\0\0")  # SETTINGS of one byte
    connection.wait_closed()
    assert connection.goaways == [1]


def test_caller_that_shuts_its_side_of_the_socket_is_answered(connection, expected):
    connection.call(1, REQUEST)
    connection.socket.shutdown(socket.SHUT_WR)
    connection.wait_closed()
    assert_answered(connection.replies[1], expected)
