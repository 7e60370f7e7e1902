"""The duties of a gRPC server over HTTP/2, frame by frame, against the `h2` transport."""

import socket

import numpy as np
import pytest
from hyperframe.frame import DataFrame, WindowUpdateFrame

from digit_classifier import PRETRAINED
from digit_classifier.pb.digits.v1 import digits_pb2
from digit_classifier.predictions import DIGITS
from digit_classifier.wire import encode_request
from tests.support.raw import CLASSIFY, STREAM, Raw
from tests.support.servers import connected, running_server
from tests.support.wire import Connection, Reply, message, request_headers

MODELS = PRETRAINED
TIMEOUT_S = 20.0
MAX_MESSAGE_BYTES = 2 * 4096 * DIGITS.image_bytes + 4096
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
    assert (reply.status, reply.body) == ("OK", expected)
    assert reply.reset in (None, 0)


# Headers


@pytest.mark.parametrize(
    ("timeout", "status"),
    [
        *((f"{number}{unit}", "OK") for number, unit in zip(
            ("1", "60", "600", "60000", "60000000", "99999999"), "HMSmun", strict=True)),
        *((f"99999999{unit}", "OK") for unit in "HMSmu"),
        *((text, "INVALID_ARGUMENT") for text in (
            "", "1", "S", "-1S", "+1S", "1.5S", "1 S", "1s", "1x", "1SS", "123456789S",
            "1e3S", "\u0661S", "0x1S", "infS")),
    ],
)  # fmt: skip
def test_timeouts_in_all_units_are_obeyed_and_malformed_ones_refused(
    connection, expected, timeout, status
):
    """Those of recognised calls, too; the last one's comes out of the table."""
    for stream, text in enumerate(("21S", "22S", "23S", timeout, timeout)):
        reply = connection.ask(2 * stream + 1, REQUEST, grpc_timeout=text)
        assert reply.status == ("OK" if stream < 3 else status)
        if reply.status == "OK":
            assert_answered(reply, expected)


@pytest.mark.parametrize(
    ("outcome", "changed"),
    [
        *(("OK", {"__authority": name}) for name in ("example.com:443", "[::1]:1", "a" * 1000)),
        ("OK", {"__authority": None, "host": "somewhere"}),
        *(("OK", {"content_type": kind}) for kind in (
            "application/grpc+proto", "application/grpc;charset=utf-8", "Application/gRPC")),
        ("OK", {"x_trace_bin": "not base64 !", "x": "", "a": "b" * 4000}),
        *(("415", {"content_type": kind}) for kind in (
            "text/html", "application/grpcx", "application/grpc-web", "", None)),
        *(("405", {"__method": method}) for method in ("GET", "PUT", "HEAD", "OPTIONS")),
        ("INVALID_ARGUMENT", {"te": None}),
        *(("DEADLINE_EXCEEDED", {"grpc_timeout": f"0{unit}"}) for unit in "Hn"),
        *(("UNIMPLEMENTED", {"__path": path}) for path in (
            "/", "/x/Classify", CLASSIFY + "/", CLASSIFY + "?x=1", "/%00", "x", "//",
            "/../../etc/passwd", "/" + "y" * 10_000)),
    ],
)  # fmt: skip
def test_headers_decide_how_a_call_is_answered(connection, expected, outcome, changed):
    reply = connection.ask(1, REQUEST, **changed)
    if outcome == "OK":
        assert_answered(reply, expected)
    else:
        assert outcome in (reply.status, reply.headers[":status"])


def test_messages_of_errors_are_percent_encoded(connection):
    request = digits_pb2.ClassifyRequest(images=b"x").SerializeToString()
    reply = connection.ask(1, message(request))
    assert reply.status == "INVALID_ARGUMENT"
    assert reply.headers["grpc-message"] == "expected N x 784 bytes of images, got 1"
    infer = "/inference.GRPCInferenceService/ModelReady"
    reply = connection.ask(3, message(b"\x0a\x0a" + "%\u00e4\n\r\0 ~\u20ac".encode()), __path=infer)
    text = reply.headers["grpc-message"]
    assert reply.status not in ("OK", None)
    assert text.isascii()
    assert text.isprintable()
    assert connection.ask(5, REQUEST).status == "OK"


# Messages


@pytest.mark.parametrize("cut", [1, 4, 5, 6, 100, len(REQUEST) - 1])
def test_end_of_the_stream_may_come_in_a_frame_of_its_own(connection, expected, cut):
    connection.begin(1, b"", REQUEST[:cut], b"")
    connection.read(quiet_s=0.05)  # in reads of their own
    connection.send(DataFrame(1, REQUEST[cut:]), DataFrame(1, b"", flags=["END_STREAM"]))
    assert_answered(connection.reply(1), expected)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", "UNIMPLEMENTED"),
        (REQUEST * 2, "UNIMPLEMENTED"),
        (REQUEST + b"\0", "UNIMPLEMENTED"),
        (b"\0", "INVALID_ARGUMENT"),
        (b"\0\0\0\0", "INVALID_ARGUMENT"),
        (REQUEST[:-1], "INVALID_ARGUMENT"),
        (message(b"x", flag=1), "UNIMPLEMENTED"),
        (message(REQUEST, flag=2), "INVALID_ARGUMENT"),
        (b"\0\xff\xff\xff\xff\0", "RESOURCE_EXHAUSTED"),
        (message(b"", length=MAX_MESSAGE_BYTES + 1), "RESOURCE_EXHAUSTED"),
    ],
)
def test_anything_but_one_whole_message_is_refused(connection, body, status):
    reply = connection.ask(1, body)
    assert reply.status == status
    assert reply.body == b""
    if body[:1] == b"\1":
        assert reply.headers["grpc-accept-encoding"] == "identity,gzip"


@pytest.mark.parametrize("path", [CLASSIFY, STREAM])
def test_refusals_in_the_middle_of_a_call(connection, path):
    """Cut short in a later frame, without a body, and over the limit before the body comes."""
    connection.begin(1, REQUEST[:100], __path=path)
    connection.end(1, REQUEST[100:-1])
    assert connection.reply(1).status == "INVALID_ARGUMENT"
    connection.send(connection.headers(3, request_headers(), "END_STREAM"))
    assert connection.reply(3).status == "UNIMPLEMENTED"
    connection.begin(5, message(b"", length=MAX_MESSAGE_BYTES + 1), __path=path)
    assert connection.reply(5).status == "RESOURCE_EXHAUSTED"


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
    assert connection.reply(3).status == "UNIMPLEMENTED"
    assert_answered(connection.reply(5), expected)


# Flow control


def test_messages_larger_than_the_windows_arrive(target):
    """As large as a request may be, sent as the server lets it."""
    request = message(encode_request(PIXELS.tobytes()))
    with Connection(target.address, TIMEOUT_S) as connection:
        connection.open_wide()
        connection.open_window(1, 1 << 20)
        connection.begin(1, __path=STREAM)
        connection.send_body(1, request * 10)
        reply = connection.reply(1)
        assert reply.status == "OK"
        first = reply.body[: len(reply.body) // 10]
        assert len(digits_pb2.ClassifyResponse.FromString(first[5:]).digits) == 4096


def test_answers_before_a_refusal_wait_for_the_callers_window(target, expected):
    with Connection(target.address, TIMEOUT_S) as connection:
        connection.open(INITIAL_WINDOW_SIZE=len(expected))
        connection.begin(1, REQUEST * 3 + message(b"\x0a\x01\x00"), __path=STREAM)
        connection.wait(lambda: bool(connection.replies.get(1, Reply()).body))
        connection.read()
        connection.send(WindowUpdateFrame(1, window_increment=10_000))
        reply = connection.reply(1)
        assert (reply.status, reply.body) == ("INVALID_ARGUMENT", expected * 3)


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
        for stream, path, *part in ((3, CLASSIFY), (5, CLASSIFY, REQUEST[:50]), (7, STREAM)):
            connection.begin(stream, *part, __path=path)  # their messages have not arrived
        idle.read()
        connection.wait(lambda: 1 in connection.replies)
        server.process.terminate()
        connection.wait(lambda: len(connection.goaways) == 1)
        assert connection.goaways == [2**31 - 1]
        connection.call(9, REQUEST)
        for stream in (3, 5, 7, 9):
            assert connection.reply(stream).status == "UNAVAILABLE"
        connection.send(WindowUpdateFrame(1, window_increment=1000))
        assert_answered(connection.reply(1), expected)
        connection.wait_closed()
        idle.wait_closed()
        assert connection.goaways == [2**31 - 1, 9]
        assert idle.goaways == [2**31 - 1, 0]
        assert server.process.wait(TIMEOUT_S) == 0


def test_caller_that_shuts_its_side_of_the_socket_is_answered(connection, expected):
    connection.call(1, REQUEST)
    connection.socket.shutdown(socket.SHUT_WR)
    connection.wait_closed()
    assert_answered(connection.replies[1], expected)
