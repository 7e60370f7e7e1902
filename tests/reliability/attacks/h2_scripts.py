"""What a hostile peer may send, each as a script on a fresh connection."""

import socket
import struct
import time
from collections.abc import Callable

from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from serving.protocols.digits_v1.wire import encode_request
from tests.support.h2_connection import PREFACE, Connection, message, request_headers

Script = Callable[[Connection], None]

SCRIPTS: dict[str, Script] = {}
IMAGE = encode_request(bytes(784))
WRONG = encode_request(bytes(1))
"""A message that is refused: what is let in by mistake still runs nothing."""

BROKEN_FRAMING = frozenset(
    (
        "continuation_flood", "no_message", "empty_body", "cut_message", "cut_length",
        "length_of_four_gigabytes", "unknown_encoding",
        "compressed_flag_without_encoding", "compressed_with_garbage", "strange_flag",
        "hpack_garbage", "hpack_index_out_of_the_table", "upper_case_header", "bad_timeouts",
    )
)  # fmt: skip
"""Scripts that break the framing below the message: gRPC's libraries answer them, with INTERNAL, as
its protocol has it. Nothing of ours has run by then."""


def script(function: Script) -> Script:
    """Register a script under its name."""
    SCRIPTS[function.__name__] = function
    return function


def frame(kind: int, flags: int, stream: int, body: bytes, length: int | None = None) -> bytes:
    """Build a frame of any kind, with any length in its header."""
    size = len(body) if length is None else length
    return struct.pack(">I", size)[1:] + struct.pack(">BBI", kind, flags, stream) + body


# Not HTTP/2 at all


@script
def http_1_get(c: Connection) -> None:
    c.send(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")


@script
def http_1_upgrade(c: Connection) -> None:
    c.send(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\n"
           b"Upgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA\r\n\r\n")  # fmt: skip


@script
def http_1_endless_header(c: Connection) -> None:
    c.send(b"POST / HTTP/1.1\r\nX: " + b"a" * 1_000_000)


@script
def bad_preface(c: Connection) -> None:
    c.send(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", SettingsFrame(0))


@script
def half_a_preface(c: Connection) -> None:
    c.send(PREFACE[:11])


@script
def preface_and_silence(c: Connection) -> None:
    c.send(PREFACE)


@script
def tls_client_hello(c: Connection) -> None:
    c.send(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(range(256)) * 2)


@script
def zeros(c: Connection) -> None:
    c.send(bytes(100_000))


@script
def ones(c: Connection) -> None:
    c.send(b"\xff" * 100_000)


@script
def nothing(c: Connection) -> None:
    c.socket.shutdown(socket.SHUT_WR)


@script
def reset(c: Connection) -> None:
    c.open()
    c.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


@script
def one_byte_at_a_time(c: Connection) -> None:
    for byte in PREFACE[:8]:
        c.send(bytes([byte]))
        time.sleep(0.25)  # the point: a peer that takes its time


@script
def a_frame_byte_by_byte_then_gone(c: Connection) -> None:
    c.open()
    for byte in c.headers(1, request_headers()).serialize()[:-1]:
        c.send(bytes([byte]))


# Connection frames


@script
def settings_flood(c: Connection) -> None:
    c.open()
    c.send(*[SettingsFrame(0, settings={3: n}) for n in range(10_000)])


@script
def settings_of_odd_length(c: Connection) -> None:
    c.open()
    c.send(frame(4, 0, 0, bytes(5)))


@script
def settings_on_a_stream(c: Connection) -> None:
    c.open()
    c.send(frame(4, 0, 1, bytes(6)))


@script
def settings_ack_with_content(c: Connection) -> None:
    c.open()
    c.send(frame(4, 1, 0, bytes(6)))


@script
def settings_window_too_large(c: Connection) -> None:
    c.open(INITIAL_WINDOW_SIZE=1 << 31)


@script
def settings_frame_size_too_small(c: Connection) -> None:
    c.open(MAX_FRAME_SIZE=1)


@script
def settings_header_table_huge(c: Connection) -> None:
    c.open(HEADER_TABLE_SIZE=(1 << 32) - 1)


@script
def ping_flood(c: Connection) -> None:
    c.open()
    c.send(*[PingFrame(0, n.to_bytes(8, "big")) for n in range(10_000)])


@script
def ping_of_wrong_length(c: Connection) -> None:
    c.open()
    c.send(frame(6, 0, 0, bytes(7)))


@script
def ping_on_a_stream(c: Connection) -> None:
    c.open()
    c.send(frame(6, 0, 1, bytes(8)))


@script
def ping_acks_nobody_asked_for(c: Connection) -> None:
    c.open()
    c.send(*[frame(6, 1, 0, bytes(8))] * 1000)


@script
def goaway_and_on(c: Connection) -> None:
    c.open()
    c.send(GoAwayFrame(0))
    c.call(1, message(b""))


@script
def unknown_frames(c: Connection) -> None:
    c.open()
    c.send(*[frame(0xBB, 0xFF, 0, bytes(100))] * 2000)


@script
def frame_over_the_size_limit(c: Connection) -> None:
    c.open()
    c.send(frame(0, 0, 1, bytes(1 << 20)))


@script
def frame_that_never_ends(c: Connection) -> None:
    c.open()
    c.send(frame(0, 0, 1, bytes(10), length=(1 << 24) - 1))


@script
def window_update_of_zero(c: Connection) -> None:
    c.open()
    c.send(frame(8, 0, 0, bytes(4)))


@script
def window_overflow(c: Connection) -> None:
    c.open()
    c.send(*[WindowUpdateFrame(0, window_increment=(1 << 31) - 1)] * 3)


@script
def window_overflow_of_a_stream(c: Connection) -> None:
    c.open()
    c.send(c.headers(1, request_headers()))
    c.send(*[WindowUpdateFrame(1, window_increment=(1 << 31) - 1)] * 3)


# Stream frames


@script
def rapid_reset(c: Connection) -> None:
    c.open()
    for stream in range(1, 10_001, 2):
        c.send(c.headers(stream, request_headers()), RstStreamFrame(stream, error_code=8))


@script
def rapid_reset_with_half_a_message(c: Connection) -> None:
    c.open()
    for stream in range(1, 2001, 2):
        head = c.headers(stream, request_headers())
        c.send(head, DataFrame(stream, message(IMAGE)[:400]), RstStreamFrame(stream, error_code=8))


@script
def continuation_flood(c: Connection) -> None:
    c.open()
    c.send(HeadersFrame(1, c.encode(request_headers())))
    for number in range(3000):
        block = b"\x00\x07" + b"x-%05d" % number + b"\x7f\x81\x07" + b"a" * 256
        c.send(ContinuationFrame(1, block))


@script
def continuation_out_of_nowhere(c: Connection) -> None:
    c.open()
    c.send(ContinuationFrame(1, b"", flags=["END_HEADERS"]))


@script
def continuation_on_another_stream(c: Connection) -> None:
    c.open()
    c.send(HeadersFrame(1, c.encode(request_headers())))
    c.send(ContinuationFrame(3, b"", flags=["END_HEADERS"]))


@script
def ping_within_a_header_block(c: Connection) -> None:
    c.open()
    c.send(HeadersFrame(1, c.encode(request_headers())), PingFrame(0, bytes(8)))


@script
def data_on_stream_zero(c: Connection) -> None:
    c.open()
    c.send(frame(0, 0, 0, bytes(10)))


@script
def data_on_an_idle_stream(c: Connection) -> None:
    c.open()
    c.send(DataFrame(1, message(IMAGE)))


@script
def data_after_the_end(c: Connection) -> None:
    c.open()
    c.call(1, message(b"\x0a\x01\x00"))
    c.send(DataFrame(1, message(IMAGE)))


@script
def even_stream(c: Connection) -> None:
    c.open()
    c.send(c.headers(2, request_headers()))


@script
def falling_stream_numbers(c: Connection) -> None:
    c.open()
    c.send(c.headers(9, request_headers()), c.headers(3, request_headers()))


@script
def reset_of_an_idle_stream(c: Connection) -> None:
    c.open()
    c.send(RstStreamFrame(77, error_code=0))


@script
def push_promise(c: Connection) -> None:
    c.open()
    c.send(c.headers(1, request_headers()), frame(5, 4, 1, b"\x00\x00\x00\x02" + bytes(4)))


@script
def stream_that_depends_on_itself(c: Connection) -> None:
    c.open()
    c.send(frame(2, 0, 1, b"\x00\x00\x00\x01\x10"))


@script
def padding_longer_than_the_frame(c: Connection) -> None:
    c.open()
    c.send(c.headers(1, request_headers()), frame(0, 8, 1, b"\xff" + bytes(5)))


@script
def empty_data_flood(c: Connection) -> None:
    c.open()
    c.send(c.headers(1, request_headers()), *[DataFrame(1, b"")] * 10_000)


@script
def many_streams_that_stall(c: Connection) -> None:
    c.open()
    for stream in range(1, 4001, 2):
        c.send(c.headers(stream, request_headers()))


@script
def many_streams_that_stall_in_a_message(c: Connection) -> None:
    c.open()
    for stream in range(1, 401, 2):
        c.send(c.headers(stream, request_headers()), DataFrame(stream, message(IMAGE)[:-1]))


@script
def window_zero(c: Connection) -> None:
    c.open(INITIAL_WINDOW_SIZE=0)
    for stream in range(1, 201, 2):
        c.call(stream, message(b"\x0a\x02\x00\x00"))  # refused; nothing can be sent back


# Headers


@script
def hpack_garbage(c: Connection) -> None:
    c.open()
    c.send(HeadersFrame(1, b"\xff" * 64, flags=["END_HEADERS", "END_STREAM"]))


@script
def hpack_index_out_of_the_table(c: Connection) -> None:
    c.open()
    c.send(HeadersFrame(1, b"\xff\x80\x80\x80\x08", flags=["END_HEADERS"]))


@script
def hpack_bomb(c: Connection) -> None:
    c.open()
    entry = b"\x40\x01a\x7f\xa1\x1e" + b"b" * 4000  # one entry of 4 kB, then named 10,000 times
    c.send(HeadersFrame(1, entry + b"\xbe" * 10_000, flags=["END_HEADERS"]))


@script
def headers_of_a_megabyte(c: Connection) -> None:
    c.open()
    block = c.encode([*request_headers(), *((f"x-{n}", "v" * 1000) for n in range(1000))])
    c.send(HeadersFrame(1, block[:16_000]))
    for at in range(16_000, len(block), 16_000):
        last = ["END_HEADERS"] if at + 16_000 >= len(block) else []
        c.send(ContinuationFrame(1, block[at : at + 16_000], flags=last))


@script
def upper_case_header(c: Connection) -> None:
    c.open()
    c.send(c.headers(1, [*request_headers(), ("X-Shout", "1")], "END_STREAM"))


@script
def no_path(c: Connection) -> None:
    c.open()
    c.call(1, message(IMAGE), __path=None)


@script
def two_paths(c: Connection) -> None:
    c.open()
    c.send(c.headers(1, [*request_headers()[:3], *request_headers()], "END_STREAM"))


@script
def pseudo_header_last(c: Connection) -> None:
    c.open()
    c.send(c.headers(1, [*request_headers()[1:], (":method", "POST")], "END_STREAM"))


@script
def get_instead_of_post(c: Connection) -> None:
    c.open()
    c.call(1, message(WRONG), __method="GET")


@script
def other_content_type(c: Connection) -> None:
    c.open()
    c.call(1, message(WRONG), content_type="text/html")


@script
def path_of_many_kinds(c: Connection) -> None:
    c.open()
    paths = ("/", "//", "/../../etc/passwd", "/%00", "/a/b/c", "x", "/" + "y" * 10_000)
    for stream, path in zip(range(1, 99, 2), paths, strict=False):
        c.call(stream, message(b""), __path=path)


# gRPC's own framing


@script
def no_message(c: Connection) -> None:
    c.open()
    c.send(c.headers(1, request_headers(), "END_STREAM"))


@script
def empty_body(c: Connection) -> None:
    c.open()
    c.call(1, b"")


@script
def cut_message(c: Connection) -> None:
    c.open()
    c.call(1, message(IMAGE)[:-10])


@script
def cut_length(c: Connection) -> None:
    c.open()
    c.call(1, b"\x00\x00\x00")


@script
def length_of_four_gigabytes(c: Connection) -> None:
    c.open()
    c.call(1, message(IMAGE, length=0xFFFF_FFFF))


@script
def compressed_flag_without_encoding(c: Connection) -> None:
    c.open()
    c.call(1, message(IMAGE, flag=1))


@script
def compressed_with_garbage(c: Connection) -> None:
    c.open()
    c.call(1, message(IMAGE, flag=1), grpc_encoding="gzip")


@script
def unknown_encoding(c: Connection) -> None:
    c.open()
    c.call(1, message(IMAGE, flag=1), grpc_encoding="brotli-nope")


@script
def strange_flag(c: Connection) -> None:
    c.open()
    c.call(1, message(IMAGE, flag=0x7F))


@script
def two_messages_in_one_call(c: Connection) -> None:
    c.open()
    c.call(1, message(b"\x0a\x01\x00") * 2)


@script
def bad_timeouts(c: Connection) -> None:
    c.open()
    for stream, timeout in zip(range(1, 99, 2), ("", "S", "-1S", "1", "999999999999S", "1x"),
                               strict=False):  # fmt: skip
        c.call(stream, message(b"\x0a\x01\x00"), grpc_timeout=timeout)


@script
def trailers_in_the_middle(c: Connection) -> None:
    c.open()
    c.send(c.headers(1, request_headers()), DataFrame(1, message(IMAGE)[:10]))
    c.send(c.headers(1, [("x", "y")]), DataFrame(1, message(IMAGE)[10:], flags=["END_STREAM"]))
