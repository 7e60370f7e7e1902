"""Attacks by a hostile peer, each a script on a fresh connection."""

import socket
import struct
import time
from collections.abc import Callable

from hyperframe.frame import (
    DataFrame,
    RstStreamFrame,
)

from serving.digits.protocol.wire import encode_request
from tests.support.h2_connection import PREFACE, Connection, message, request_headers

Script = Callable[[Connection], None]

SCRIPTS: dict[str, Script] = {}
IMAGE = encode_request(bytes(784))
WRONG = encode_request(bytes(1))
"""An invalid message: even if let in by mistake, it runs nothing."""

BROKEN_FRAMING = frozenset(
    (
        "no_message", "empty_body", "cut_message", "cut_length", "length_of_four_gigabytes",
        "unknown_encoding", "compressed_flag_without_encoding", "compressed_with_garbage",
        "strange_flag", "bad_timeouts",
    )
)  # fmt: skip
"""Scripts that break the framing below the message: gRPC's libraries answer them, with INTERNAL, as
its protocol has it. Nothing of ours has run by then."""


def script(function):
    """Register a script under its name."""
    SCRIPTS[function.__name__] = function
    return function


def frame(kind, flags, stream, body, length=None):
    """Build a frame of any kind, with any length in its header."""
    size = len(body) if length is None else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, stream) + body


# Not HTTP/2 at all


@script
def http_1_get(c):
    c.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


@script
def http_1_upgrade(c):
    c.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
           b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n")  # fmt: skip


@script
def http_1_endless_header(c):
    c.send(b"POST / HTTP/1.1\r\nX: " + b"a" * 1_000_000)


@script
def nothing(c):
    c.socket.shutdown(socket.SHUT_WR)


@script
def reset(c):
    c.open()
    c.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@script
def one_byte_at_a_time(c):
    for byte in PREFACE[:8]:
        c.send(bytes([byte]))
        time.sleep(0.25)  # the point: a peer that takes its time


@script
def a_frame_byte_by_byte_then_gone(c):
    c.open()
    for byte in c.headers(1, request_headers()).serialize()[:-1]:
        c.send(bytes([byte]))


# Connection frames


@script
def settings_header_table_huge(c):
    c.open(HEADER_TABLE_SIZE=(1 << 32) - 1)


@script
def frame_that_never_ends(c):
    c.open()
    c.send(frame(0, 0, 1, bytes(10), length=(1 << 24) - 1))


# Stream frames


@script
def rapid_reset(c):
    c.open()
    for stream in range(1, 10_001, 2):
        c.send(c.headers(stream, request_headers()), RstStreamFrame(stream, error_code=8))


@script
def rapid_reset_with_half_a_message(c):
    c.open()
    for stream in range(1, 2001, 2):
        head = c.headers(stream, request_headers())
        c.send(head, DataFrame(stream, message(IMAGE)[:400]), RstStreamFrame(stream, error_code=8))


@script
def many_streams_that_stall(c):
    c.open()
    for stream in range(1, 4001, 2):
        c.send(c.headers(stream, request_headers()))


@script
def many_streams_that_stall_in_a_message(c):
    c.open()
    for stream in range(1, 401, 2):
        c.send(c.headers(stream, request_headers()), DataFrame(stream, message(IMAGE)[:-1]))


@script
def window_zero(c):
    c.open(INITIAL_WINDOW_SIZE=0)
    for stream in range(1, 201, 2):
        c.call(stream, message(b"\x0a\x02\x00\x00"))  # refused; nothing can be sent back


# Headers


@script
def path_of_many_kinds(c):
    c.open()
    paths = ("/", "//", "/../../etc/passwd", "/%00", "/a/b/c", "x", "/" + "y" * 10_000)
    for stream, path in zip(range(1, 99, 2), paths, strict=False):
        c.call(stream, message(b""), __path=path)


# gRPC's own framing


@script
def no_message(c):
    c.open()
    c.send(c.headers(1, request_headers(), "END_STREAM"))


@script
def empty_body(c):
    c.open()
    c.call(1, b"")


@script
def cut_message(c):
    c.open()
    c.call(1, message(IMAGE)[:-10])


@script
def cut_length(c):
    c.open()
    c.call(1, b"\x00\x00\x00")


@script
def length_of_four_gigabytes(c):
    c.open()
    c.call(1, message(IMAGE, length=0xFFFF_FFFF))


@script
def compressed_flag_without_encoding(c):
    c.open()
    c.call(1, message(IMAGE, flag=1))


@script
def compressed_with_garbage(c):
    c.open()
    c.call(1, message(IMAGE, flag=1), grpc_encoding="gzip")


@script
def unknown_encoding(c):
    c.open()
    c.call(1, message(IMAGE, flag=1), grpc_encoding="brotli-nope")


@script
def strange_flag(c):
    c.open()
    c.call(1, message(IMAGE, flag=0x7F))


@script
def two_messages_in_one_call(c):
    c.open()
    c.call(1, message(b"\x0a\x01\x00") * 2)


@script
def bad_timeouts(c):
    c.open()
    for stream, timeout in zip(range(1, 99, 2), ("", "S", "-1S", "1", "999999999999S", "1x"),
                               strict=False):  # fmt: skip
        c.call(stream, message(b"\x0a\x01\x00"), grpc_timeout=timeout)
