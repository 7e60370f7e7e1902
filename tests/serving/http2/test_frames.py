"""Frames in, frames out, on the engine alone: the cases of h2spec 2.6, attacks, limits, windows.

h2spec (github.com/summerwind/h2spec) counts 146, and one more if it is strict. It follows RFC 7540;
a row says where RFC 9113 differs. None is left out. Where h2spec accepts several endings, a row
names ours.
"""

from itertools import count, product
from typing import Any

import hpack
import pytest
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

from serving.http2 import events
from serving.http2.client import ClientConnection
from serving.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    DEFAULT_FRAME,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES,
    GOAWAY,
    HEADERS,
    MAX_WINDOW,
    PADDED,
    PING,
    PREFACE,
    PRIORITIZED,
    PRIORITY,
    PUSH_PROMISE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    Http2Error,
    frame,
    word,
)
from serving.http2.limits import Limits
from serving.http2.server import ServerConnection

LIMITS = Limits(burst_resets=100)
ANSWER = b"hello"
ANSWERS = ((b":status", b"200"),), ((b"grpc-status", b"0"),)
PING_DATA = b"01234567"
WHOLE = END_HEADERS | END_STREAM

FIRST, ANSWERED, PONG, ACKED = "first SETTINGS", "HEADERS", "PONG", "SETTINGS ACK"
OVER = "the connection is over"
GOAWAY_PROTOCOL, GOAWAY_WINDOW, GOAWAY_CLOSED, GOAWAY_SIZE, GOAWAY_HPACK, GOAWAY_CALM = (
    f"GOAWAY {name}" for name in ("PROTOCOL_ERROR", "FLOW_CONTROL_ERROR", "STREAM_CLOSED",
                                  "FRAME_SIZE_ERROR", "COMPRESSION_ERROR", "ENHANCE_YOUR_CALM")
)  # fmt: skip
RESET_PROTOCOL, RESET_WINDOW, RESET_CLOSED, RESET_REFUSED = (
    f"RST_STREAM {name}"
    for name in ("PROTOCOL_ERROR", "FLOW_CONTROL_ERROR", "STREAM_CLOSED", "REFUSED_STREAM")
)


def block(*more, without="", method="GET", path="/"):
    """A request's header block, which adds to the table."""
    fields = [(":method", method), (":scheme", "http"), (":path", path), (":authority", "x")]
    return hpack.Encoder().encode([*(f for f in fields if f[0] != without), *more])


BLOCK = block()
FIELD = hpack.Encoder().encode([("x-dummy", "x" * 100)])


def of(kind, payload=b"", flags=0, stream=1):
    """A frame, on stream 1."""
    return frame(kind, flags, word(stream), payload)


def headers(flags=WHOLE, payload=BLOCK, stream=1):
    """A HEADERS frame, of a request without a body unless told otherwise."""
    return of(HEADERS, payload, flags, stream)


def request(*more, without="", path="/"):
    """A request without a body whose fields differ."""
    return headers(payload=block(*more, without=without, path=path))


def ending(payload):
    """A request whose header block ends with these bytes."""
    return headers(payload=BLOCK + payload)


def priority(stream, parent=0, weight=255):
    """A PRIORITY frame."""
    return of(PRIORITY, word(parent) + bytes((weight,)), 0, stream)


def setting(*pairs):
    """A SETTINGS frame."""
    payload = b"".join(name.to_bytes(2, "big") + word(value) for name, value in pairs)
    return of(SETTINGS, payload, 0, 0)


def window(size):
    """SETTINGS of the first window."""
    return setting((4, size))


def update(stream, increment):
    """A WINDOW_UPDATE frame."""
    return of(WINDOW_UPDATE, word(increment), 0, stream)


def text(value, *, coded):
    """A string of a header block that is shorter than 127 bytes."""
    if coded:
        value = HuffmanEncoder(REQUEST_CODES, REQUEST_CODES_LENGTH).encode(value)
    return bytes((coded << 7 | len(value),)) + value


def literal(first, name, *, coded):
    """A field of each kind in HPACK's section 6.2: its name by its index, 58, or as it is."""
    index = b"\x7a" if first == 0x40 else bytes((first | 15, 58 - 15))
    start = index if name == "known" else bytes((first,)) + text(b"x-test", coded=coded)
    return start + text(b"ok", coded=coded)


def calls(number, end):
    """Calls that begin alike, without the header table, and the end of each: a frame's rest."""
    streams = [word(stream) for stream in range(1, 2 * number, 2)]
    start = b"\0\0\6\1\4", b"\x83\x86\x04\x02/a" + end[:5]
    return b"".join(start[0] + s + start[1] + s + end[9:] for s in streams)


def promised(*parts, size=5):
    """A request of so many bytes by its content-length, in DATA of these lengths."""
    *first, last = (of(DATA, bytes(number)) for number in parts)
    body = b"".join(first) + last[:4] + b"\1" + last[5:]
    return headers(END_HEADERS, block(("content-length", str(size)))) + body


ONE = word(1)
REQUEST = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a"), (b"te", b"trailers"))
OPEN = headers(END_HEADERS)
CALL = headers()
START = headers(END_STREAM)
NEXT, LAST = of(CONTINUATION, FIELD), of(CONTINUATION, FIELD, END_HEADERS)
BODY, PART = of(DATA, b"test", END_STREAM), of(DATA, b"test")
CANCEL = of(RST_STREAM, word(8))
ASK = of(PING, PING_DATA, 0, 0)
UNKNOWN = of(0x16, bytes(8), 0, 0)
TRAILERS = hpack.Encoder().encode([("x-test", "ok")])
HELLO = PREFACE + setting()

CASES: list[tuple[str, str, bytes, str]] = [
    # generic: for every endpoint
    ("generic/1/1", "a preface is answered by SETTINGS", HELLO, FIRST),
    ("generic/2/1", "PRIORITY, idle", priority(1) + ASK, PONG),
    ("generic/2/2", "WINDOW_UPDATE, half-closed", window(0) + CALL + update(1, 1), "DATA 1"),
    ("generic/2/3", "PRIORITY, half-closed", window(0) + CALL + priority(1) + update(1, 1),
     "DATA 1"),
    ("generic/2/4", "RST_STREAM, half-closed", CALL + CANCEL + ASK, PONG),
    ("generic/2/5", "PRIORITY, closed", CALL + priority(1) + ASK, PONG),
    ("generic/3.1/1", "DATA", OPEN + BODY, ANSWERED),
    ("generic/3.1/2", "DATA, twice", OPEN + PART + BODY, ANSWERED),
    ("generic/3.1/3", "DATA, padded",
     OPEN + of(DATA, b"\5test" + bytes(5), END_STREAM | PADDED), ANSWERED),
    ("generic/3.2/1", "HEADERS", CALL, ANSWERED),
    ("generic/3.2/2", "HEADERS, padded", headers(WHOLE | PADDED, b"\x08" + BLOCK + bytes(8)),
     ANSWERED),
    ("generic/3.2/3", "HEADERS with a priority",
     headers(WHOLE | PRIORITIZED, word(0) + b"\xff" + BLOCK), ANSWERED),
    # Priorities mean nothing any more, and are still parsed (RFC 9113, section 5.3.2).
    ("generic/3.3/1", "PRIORITY, the least", priority(1, weight=0) + CALL, ANSWERED),
    ("generic/3.3/2", "PRIORITY, the greatest", priority(1, weight=255) + CALL, ANSWERED),
    ("generic/3.3/3", "PRIORITY, of a parent", priority(3, 1) + CALL, ANSWERED),
    ("generic/3.3/4", "PRIORITY, exclusive", priority(1, 1 << 31) + CALL, ANSWERED),
    ("generic/3.3/5", "PRIORITY of a later stream first", priority(3) + CALL, ANSWERED),
    ("generic/3.4/1", "RST_STREAM", OPEN + CANCEL + ASK, PONG),
    ("generic/3.5/1", "SETTINGS of all names",
     setting((1, 4096), (2, 1), (3, 100), (4, 65_535), (5, DEFAULT_FRAME), (6, 100)), ACKED),
    ("generic/3.7/1", "PING", ASK, PONG),
    ("generic/3.8/1", "GOAWAY", of(GOAWAY, bytes(8) + b"bye", 0, 0) + ASK, PONG),
    ("generic/3.9/1", "WINDOW_UPDATE of the connection", update(0, 1) + ASK, PONG),
    ("generic/3.9/2", "WINDOW_UPDATE of a stream", CALL + update(1, 1), ANSWERED),
    ("generic/3.10/1", "CONTINUATION",
     headers(END_STREAM, BLOCK[:3]) + of(CONTINUATION, BLOCK[3:], END_HEADERS), ANSWERED),
    ("generic/3.10/2", "CONTINUATION, twice", headers(END_STREAM, BLOCK[:1])
     + of(CONTINUATION, BLOCK[1:4]) + of(CONTINUATION, BLOCK[4:], END_HEADERS), ANSWERED),
    ("generic/4/1", "GET", CALL, ANSWERED),
    ("generic/4/2", "HEAD", headers(payload=block(method="HEAD")), ANSWERED),
    ("generic/4/3", "POST", headers(END_HEADERS, block(method="POST")) + BODY, ANSWERED),
    ("generic/4/4", "POST with trailers",
     headers(END_HEADERS, block(("trailer", "x-test"), method="POST")) + PART
     + headers(WHOLE, TRAILERS), ANSWERED),
    ("generic/5/1", "a field by its index", ending(b"\xba"), ANSWERED),
    *((f"generic/5/{number}", f"a literal, {kind}, name {name}, {'coded' if coded else 'plain'}",
       ending(literal(first, name, coded=coded)), ANSWERED)
      for number, ((kind, first), name, coded) in enumerate(product(
          (("kept", 0x40), ("not kept", 0), ("never kept", 0x10)), ("known", "new"),
          (False, True)), 2)),
    ("generic/5/14", "a new size of the table", headers(payload=b"\x20" + BLOCK), ANSWERED),
    ("generic/5/15", "two of them", headers(payload=b"\x20\x3f\xe1\x1f" + BLOCK), ANSWERED),
    # http2: for servers
    ("http2/3.5/1", "SETTINGS are the first frame", HELLO, FIRST),
    ("http2/3.5/2", "no preface (GOAWAY is a MAY: RFC 9113, section 3.4)",
     b"INVALID\r\n\r\n", GOAWAY_PROTOCOL),
    ("http2/4.1/1", "a frame of an unknown kind", UNKNOWN + ASK, PONG),
    ("http2/4.1/2", "unknown flags", of(PING, PING_DATA, 0x16, 0), PONG),
    ("http2/4.1/3", "the reserved bit", of(PING, PING_DATA, 0x16, 1 << 31), PONG),
    ("http2/4.2/1", "DATA of 2^14 bytes", OPEN + of(DATA, bytes(DEFAULT_FRAME), END_STREAM),
     ANSWERED),
    ("http2/4.2/2", "DATA over MAX_FRAME_SIZE",
     OPEN + of(DATA, bytes(LIMITS.max_frame_bytes + 1), END_STREAM), GOAWAY_SIZE),
    # h2spec always sends 20 kB; we announce that we take more (RFC 9113, section 4.2).
    ("http2/4.2/3", "HEADERS over the limit of a header block",
     ending(bytes(LIMITS.max_block_bytes)), GOAWAY_SIZE),
    ("http2/4.3/1", "a header block that is cut off", headers(WHOLE, b"\x40"), GOAWAY_HPACK),
    ("http2/4.3/2", "PRIORITY in a header block", headers(0) + priority(1) + LAST, GOAWAY_PROTOCOL),
    ("http2/4.3/3", "HEADERS of another stream in one",
     headers(0) + headers(stream=3) + LAST, GOAWAY_PROTOCOL),
    ("http2/5.1/1", "DATA, idle", BODY, GOAWAY_PROTOCOL),
    ("http2/5.1/2", "RST_STREAM, idle", CANCEL, GOAWAY_PROTOCOL),
    ("http2/5.1/3", "WINDOW_UPDATE, idle", update(1, 100), GOAWAY_PROTOCOL),
    ("http2/5.1/4", "CONTINUATION, idle", of(CONTINUATION, BLOCK, END_HEADERS), GOAWAY_PROTOCOL),
    ("http2/5.1/5", "DATA, half-closed", window(0) + CALL + BODY, RESET_CLOSED),
    ("http2/5.1/6", "HEADERS, half-closed", window(0) + CALL + CALL, GOAWAY_CLOSED),
    ("http2/5.1/7", "CONTINUATION, half-closed",
     window(0) + CALL + of(CONTINUATION, BLOCK, END_HEADERS), GOAWAY_PROTOCOL),
    ("http2/5.1/8", "DATA after RST_STREAM", OPEN + CANCEL + BODY, RESET_CLOSED),
    ("http2/5.1/9", "HEADERS after RST_STREAM", OPEN + CANCEL + CALL, GOAWAY_CLOSED),
    ("http2/5.1/10", "CONTINUATION after RST_STREAM", OPEN + CANCEL + LAST, GOAWAY_PROTOCOL),
    ("http2/5.1/11", "DATA, closed (or of the stream: RFC 9113, section 5.1)", CALL + BODY,
     RESET_CLOSED),
    ("http2/5.1/12", "HEADERS, closed", CALL + CALL, GOAWAY_CLOSED),
    ("http2/5.1/13", "CONTINUATION, closed", CALL + LAST, GOAWAY_PROTOCOL),
    ("http2/5.1.1/1", "a stream of an even number", headers(stream=2), GOAWAY_PROTOCOL),
    ("http2/5.1.1/2", "numbers that fall (skipped ones are closed: RFC 9113, section 5.1.1)",
     headers(stream=5) + headers(stream=3), GOAWAY_CLOSED),
    ("http2/5.1.2/1", "one stream too many", window(0) + b"".join(
        headers(stream=2 * number + 1) for number in range(LIMITS.max_streams + 1)), RESET_REFUSED),
    # No MUST since RFC 9113 (section 5.3.2).
    ("http2/5.3.1/1", "HEADERS that depend on themselves",
     headers(WHOLE | PRIORITIZED, word(1) + b"\xff" + BLOCK), GOAWAY_PROTOCOL),
    ("http2/5.3.1/2", "PRIORITY that depends on itself", priority(1, 1), RESET_PROTOCOL),
    ("http2/5.4.1/1", "a wrong PING ends it", of(PING, bytes(8), 0, 3), GOAWAY_PROTOCOL),
    ("http2/5.4.1/2", "and has a GOAWAY (strict; a SHOULD)", of(PING, bytes(8), 0, 3),
     GOAWAY_PROTOCOL),
    ("http2/5.5/1", "an unknown frame", UNKNOWN + ASK, PONG),
    ("http2/5.5/2", "an unknown frame in a header block", START + UNKNOWN, GOAWAY_PROTOCOL),
    ("http2/6.1/1", "DATA on stream 0", of(DATA, b"test", END_STREAM, 0), GOAWAY_PROTOCOL),
    ("http2/6.1/2", "DATA on a stream that is not open", window(0) + CALL + BODY, RESET_CLOSED),
    ("http2/6.1/3", "DATA whose padding is too long",
     OPEN + of(DATA, b"\6test", END_STREAM | PADDED), GOAWAY_PROTOCOL),
    ("http2/6.2/1", "PRIORITY in a header block", headers(0) + priority(1) + LAST, GOAWAY_PROTOCOL),
    ("http2/6.2/2", "HEADERS of another stream in one",
     headers(0) + headers(stream=3) + LAST, GOAWAY_PROTOCOL),
    ("http2/6.2/3", "HEADERS on stream 0", headers(stream=0), GOAWAY_PROTOCOL),
    ("http2/6.2/4", "HEADERS whose padding is too long",
     headers(WHOLE | PADDED, bytes((len(BLOCK) + 2,)) + BLOCK), GOAWAY_PROTOCOL),
    ("http2/6.3/1", "PRIORITY on stream 0", priority(0), GOAWAY_PROTOCOL),
    ("http2/6.3/2", "PRIORITY of 4 bytes", CALL + of(PRIORITY, word(0)), GOAWAY_SIZE),
    ("http2/6.4/1", "RST_STREAM on stream 0", of(RST_STREAM, word(8), 0, 0), GOAWAY_PROTOCOL),
    ("http2/6.4/2", "RST_STREAM on an idle stream", CANCEL, GOAWAY_PROTOCOL),
    ("http2/6.4/3", "RST_STREAM of 3 bytes", CALL + of(RST_STREAM, bytes(3)), GOAWAY_SIZE),
    ("http2/6.5/1", "an ACK with a payload", of(SETTINGS, b"\0", ACK, 0), GOAWAY_SIZE),
    ("http2/6.5/2", "SETTINGS on a stream", of(SETTINGS, b"\0\3" + word(100)), GOAWAY_PROTOCOL),
    ("http2/6.5/3", "SETTINGS of 3 bytes", of(SETTINGS, b"\0\3\0", 0, 0), GOAWAY_SIZE),
    ("http2/6.5.2/1", "ENABLE_PUSH of 2", setting((2, 2)), GOAWAY_PROTOCOL),
    ("http2/6.5.2/2", "INITIAL_WINDOW_SIZE of 2^31", window(1 << 31), GOAWAY_WINDOW),
    ("http2/6.5.2/3", "MAX_FRAME_SIZE below 2^14", setting((5, 16_383)), GOAWAY_PROTOCOL),
    ("http2/6.5.2/4", "MAX_FRAME_SIZE of 2^24", setting((5, 1 << 24)), GOAWAY_PROTOCOL),
    ("http2/6.5.2/5", "an unknown setting", setting((0xFF, 1)) + ASK, PONG),
    ("http2/6.5.3/1", "the last value of a setting counts", setting((4, 100), (4, 1)) + CALL,
     "DATA 1"),
    ("http2/6.5.3/2", "SETTINGS are acknowledged", setting((2, 0)), ACKED),
    ("http2/6.7/1", "PING is answered with its payload", ASK, PONG),
    ("http2/6.7/2", "PING that is an ACK is not", of(PING, b"invalid!", ACK, 0) + ASK, PONG),
    ("http2/6.7/3", "PING on a stream", of(PING, bytes(8)), GOAWAY_PROTOCOL),
    ("http2/6.7/4", "PING of 6 bytes", of(PING, bytes(6), 0, 0), GOAWAY_SIZE),
    ("http2/6.8/1", "GOAWAY on a stream", of(GOAWAY, bytes(8)), GOAWAY_PROTOCOL),
    ("http2/6.9/1", "an increment of 0", update(0, 0), GOAWAY_PROTOCOL),
    ("http2/6.9/2", "an increment of 0 on a stream", OPEN + update(1, 0), RESET_PROTOCOL),
    ("http2/6.9/3", "WINDOW_UPDATE of 3 bytes", of(WINDOW_UPDATE, b"\0\0\1", 0, 0), GOAWAY_SIZE),
    ("http2/6.9.1/1", "an answer keeps to a window of 1", window(1) + CALL, "DATA 1"),
    ("http2/6.9.1/2", "a window over 2^31 - 1", update(0, MAX_WINDOW) * 2, GOAWAY_WINDOW),
    ("http2/6.9.1/3", "a stream's window over 2^31 - 1", OPEN + update(1, MAX_WINDOW) * 2,
     RESET_WINDOW),
    ("http2/6.9.2/1", "a first window that grows later", window(0) + CALL + window(1), "DATA 1"),
    ("http2/6.9.2/2", "a window below 0", window(3) + CALL + window(2) + update(1, 2), "DATA 4"),
    ("http2/6.9.2/3", "a first window over 2^31 - 1", window(1 << 31), GOAWAY_WINDOW),
    ("http2/6.10/1", "CONTINUATION, twice", START + NEXT + LAST, ANSWERED),
    ("http2/6.10/2", "DATA after CONTINUATION", headers(0) + NEXT + BODY, GOAWAY_PROTOCOL),
    ("http2/6.10/3", "CONTINUATION on stream 0",
     START + of(CONTINUATION, FIELD, END_HEADERS, 0), GOAWAY_PROTOCOL),
    ("http2/6.10/4", "CONTINUATION after the end, of HEADERS", CALL + LAST, GOAWAY_PROTOCOL),
    ("http2/6.10/5", "or of CONTINUATION", START + LAST + LAST, GOAWAY_PROTOCOL),
    ("http2/6.10/6", "CONTINUATION after DATA", headers(0) + BODY + NEXT + LAST, GOAWAY_PROTOCOL),
    ("http2/7/1", "GOAWAY of an unknown code", of(GOAWAY, word(0) + word(0xFF), 0, 0) + ASK, PONG),
    ("http2/7/2", "RST_STREAM of an unknown code", OPEN + of(RST_STREAM, word(0xFF)) + ASK, PONG),
    ("http2/8.1/1", "trailers that do not end the stream",
     OPEN + PART + headers(END_HEADERS, TRAILERS), RESET_PROTOCOL),
    ("http2/8.1.2/1", "a name in upper case", request(("X-TEST", "ok")), RESET_PROTOCOL),
    ("http2/8.1.2.1/1", "an unknown pseudo-header", request((":test", "ok")), RESET_PROTOCOL),
    ("http2/8.1.2.1/2", "one of responses", request((":status", "200")), RESET_PROTOCOL),
    ("http2/8.1.2.1/3", "one in trailers",
     OPEN + PART + headers(WHOLE, hpack.Encoder().encode([(":method", "POST")])), RESET_PROTOCOL),
    ("http2/8.1.2.1/4", "one after other fields",
     request(("x-test", "ok"), (":path", "/"), without=":path"), RESET_PROTOCOL),
    ("http2/8.1.2.2/1", "connection", request(("connection", "keep-alive")), RESET_PROTOCOL),
    ("http2/8.1.2.2/2", "te, but not only trailers", request(("te", "trailers, deflate")),
     RESET_PROTOCOL),
    ("http2/8.1.2.3/1", "an empty :path", request(path=""), RESET_PROTOCOL),
    ("http2/8.1.2.3/2", "no :method", request(without=":method"), RESET_PROTOCOL),
    ("http2/8.1.2.3/3", "no :scheme", request(without=":scheme"), RESET_PROTOCOL),
    ("http2/8.1.2.3/4", "no :path", request(without=":path"), RESET_PROTOCOL),
    ("http2/8.1.2.3/5", "two :method", request((":method", "GET")), RESET_PROTOCOL),
    ("http2/8.1.2.3/6", "two :scheme", request((":scheme", "http")), RESET_PROTOCOL),
    ("http2/8.1.2.3/7", "two :path", request((":path", "/")), RESET_PROTOCOL),
    ("http2/8.1.2.6/1", "more data than content-length",
     headers(END_HEADERS, block(("content-length", "1"))) + BODY, RESET_PROTOCOL),
    ("http2/8.1.2.6/2", "more data in two frames",
     headers(END_HEADERS, block(("content-length", "5"))) + PART + BODY, RESET_PROTOCOL),
    ("http2/8.2/1", "PUSH_PROMISE", of(PUSH_PROMISE, word(3) + BLOCK, END_HEADERS),
     GOAWAY_PROTOCOL),
    # hpack
    ("hpack/2.3.3/1", "an index out of the table", ending(b"\xc6"), GOAWAY_HPACK),
    ("hpack/2.3.3/2", "a name's index out of it", ending(b"\x7f\7\0"), GOAWAY_HPACK),
    ("hpack/4.2/1", "a size of the table at the end", ending(b"\x21"), GOAWAY_HPACK),
    ("hpack/5.2/1", "padding of more than 7 bits", ending(b"\0\1x\x83\x1f\xff\xff"), GOAWAY_HPACK),
    ("hpack/5.2/2", "padding of zeros", ending(b"\0\1x\x81\x18"), GOAWAY_HPACK),
    ("hpack/5.2/3", "the end of a string in it", ending(b"\0\1x\x85\xff\xff\xff\xfc\x7f"),
     GOAWAY_HPACK),
    ("hpack/6.1/1", "an index of 0", ending(b"\x80"), GOAWAY_HPACK),
    ("hpack/6.3/1", "a size over the setting", headers(payload=b"\x3f\xe2\x1f" + BLOCK),
     GOAWAY_HPACK),
    # Beside them
    ("frames/1", "HEADERS without their padding", headers(PADDED, b""), GOAWAY_SIZE),
    ("frames/2", "HEADERS without their priority", headers(PRIORITIZED, bytes(4)), GOAWAY_SIZE),
    ("frames/3", "DATA without their padding", OPEN + of(DATA, b"", PADDED), GOAWAY_SIZE),
    ("frames/4", "GOAWAY of a byte", of(GOAWAY, b"x", 0, 0), GOAWAY_SIZE),
    ("frames/5", "CONTINUATION of another stream",
     headers(0) + of(CONTINUATION, b"", END_HEADERS, 3), GOAWAY_PROTOCOL),
    ("frames/6", "no settings behind the preface", PREFACE + CALL, GOAWAY_PROTOCOL),
    ("frames/7", "a body as long as promised", promised(5), ANSWERED),
    ("frames/8", "in two frames", promised(2, 3), ANSWERED),
    ("frames/9", "a shorter one", promised(4), RESET_PROTOCOL),
    ("frames/10", "a longer one", promised(6), RESET_PROTOCOL),
    *((f"frames/{number}", f"{size} promised, {' and '.join(map(str, parts))} sent",
       promised(*parts, size=size), ANSWERED if size == sum(parts) else RESET_PROTOCOL)
      for number, (size, parts) in enumerate(product(
          (499, 500, 501), ((500,), (250, 250), (499, 1), (20, 480))), 17)),
    ("frames/29", "content-length twice",
     request(("content-length", "0"), ("content-length", "0")), RESET_PROTOCOL),
    ("frames/30", "DATA without their padding, before others",
     OPEN + of(DATA, b"", PADDED) + ASK, GOAWAY_SIZE),
    ("frames/31", "DATA that are all padding", OPEN + of(DATA, b"\4" + bytes(4), PADDED) + BODY,
     ANSWERED),
    ("frames/32", "HEADERS that are all padding", headers(WHOLE | PADDED, b"\4" + bytes(4)),
     RESET_PROTOCOL),
    ("frames/33", "HEADERS whose padding is all but a priority",
     headers(WHOLE | PADDED | PRIORITIZED, b"\4" + word(3) + b"\0" + bytes(4)), RESET_PROTOCOL),
    ("frames/34", "and a byte of it",
     headers(WHOLE | PADDED | PRIORITIZED, b"\5" + word(3) + b"\0" + bytes(4)), GOAWAY_PROTOCOL),
    *((f"frames/{number}", f"{name}: {value!r}", headers(END_HEADERS, block((name, value))),
       RESET_PROTOCOL)
      for number, (name, value) in enumerate((
          ("x", " blank"), ("x", "a\nb"), ("content-length", "-1"), ("content-length", "x"),
          ("content-length", ""), ("transfer-encoding", "")), 11)),
    ("attacks/1", "a bomb of headers",
     headers(END_HEADERS, BLOCK + b"\x40\x01a\x7f\xa1\x1e" + b"x" * 4000)
     + headers(payload=b"\xbe" * 10_000, stream=3), GOAWAY_HPACK),
    ("attacks/2", "rapid resets (CVE-2023-44487)", calls(200, CANCEL), GOAWAY_CALM),
    ("attacks/3", "resets that the server has to send (CVE-2025-8671)", calls(500, update(1, 0)),
     GOAWAY_CALM),
    ("attacks/4", "a header block without end (CVE-2024-27316)",
     headers(0) + of(CONTINUATION) * 100, GOAWAY_CALM),
    ("attacks/5", "a long header block (CVE-2024-27316)",
     headers(0) + of(CONTINUATION, bytes(16_000)) * 5, GOAWAY_CALM),
    ("attacks/6", "pings (CVE-2019-9512)", of(PING, bytes(8), ACK, 0) * 2000, GOAWAY_CALM),
    ("attacks/7", "priorities (CVE-2019-9513)", priority(9) * 2000, GOAWAY_CALM),
    ("attacks/8", "settings (CVE-2019-9515)", setting() * 2000, GOAWAY_CALM),
    ("attacks/9", "empty data (CVE-2019-9518)", OPEN + of(DATA) * 2000, GOAWAY_CALM),
    ("attacks/10", "bytes of data", OPEN + of(DATA, b"x") * 2000, GOAWAY_CALM),
    ("attacks/11", "padding", OPEN + of(DATA, b"\x20" + bytes(32), PADDED) * 2000, GOAWAY_CALM),
    ("attacks/12", "windows", update(0, 1) * 2000, GOAWAY_CALM),
    ("attacks/13", "unknown frames", UNKNOWN * 2000, GOAWAY_CALM),
    ("attacks/15", "unknown frames in pieces", of(20, bytes(1_100), 0, 0) * 2000, GOAWAY_CALM),
    ("attacks/16", "trailers of a stream that was reset",
     OPEN + update(1, 0) + headers() * 2000, GOAWAY_CALM),
    ("attacks/14", "data on a stream that is over", CALL + of(DATA, b"x", END_STREAM) * 2000,
     GOAWAY_CALM),
]  # fmt: skip


def started(**limits):
    """A server that has read a preface and SETTINGS."""
    server = ServerConnection(Limits(**limits), *ANSWERS)
    server.receive(HELLO, 0.0)
    server.data_to_send()
    return server


def conversation(data, read_bytes):
    """Send data to a server that answers each request at its end; return its bytes."""
    server = ServerConnection(LIMITS, *ANSWERS)
    if not data.startswith((PREFACE, b"INVALID")):
        server = started(burst_resets=100)
    try:
        for at in range(0, len(data), read_bytes):
            for event in server.receive(data[at : at + read_bytes], 0.0):
                is_last = isinstance(event, events.TrailersReceived) or (
                    isinstance(event, events.HeadersReceived | events.DataReceived) and event.is_end
                )
                if is_last:
                    server.answer([event.stream], [ANSWER])
    except Http2Error:
        return [*names_of(server.data_to_send()), OVER]
    return names_of(server.data_to_send())


def names_of(sent):
    """Name the frames that a server sent; last, how many bytes of DATA they have."""
    names, num_bytes = [], 0
    while sent:
        length, kind, flags = int.from_bytes(sent[:3], "big"), sent[3], sent[4]
        payload, sent = sent[FRAME_BYTES : FRAME_BYTES + length], sent[FRAME_BYTES + length :]
        num_bytes += length if kind == DATA else 0
        if kind == GOAWAY:
            names.append(f"GOAWAY {ErrorCode(payload[7]).name}")
        elif kind == RST_STREAM:
            names.append(f"RST_STREAM {ErrorCode(payload[3]).name}")
        elif kind == PING:
            names.append(PONG if (flags, payload) == (ACK, PING_DATA) else "PING")
        elif kind == SETTINGS:
            names.append(ACKED if flags else "SETTINGS" if names else FIRST)
        elif kind == HEADERS:
            names.append(ANSWERED)
    return [*names, f"DATA {num_bytes}"]


@pytest.mark.parametrize(
    ("data", "expected"), [case[2:] for case in CASES], ids=[" ".join(case[:2]) for case in CASES]
)
def test_case(data, expected):
    for read_bytes in (1 if len(data) < 10_000 else 1000, len(data)):
        names = conversation(data, read_bytes)
        errors = [name for name in names if name.startswith(("GOAWAY", "RST_STREAM", "PING"))]
        assert expected in names
        if expected == GOAWAY_CALM:  # after resets, perhaps
            errors = errors[-1:]
        assert errors == ([expected] if expected in errors else [])
        assert (OVER in names) == expected.startswith("GOAWAY")


def test_all_cases_are_there():
    numbers = {case[0] for case in CASES}
    assert sum(number.startswith(("generic", "http2", "hpack")) for number in numbers) == 147


# Limits and windows


def test_what_callers_do_in_passing_is_no_flood():
    """Each of 1,000 calls with two updates of windows and a ping, as grpcio's."""
    calls = b"".join(
        headers(END_HEADERS, b"\x83\x86\x04\x02/a", stream) + update(stream, 5) + update(0, 5)
        + of(PING, bytes(8), 0, 0) + of(DATA, bytes(800), END_STREAM, stream)
        for stream in range(1, 2000, 2)
    )  # fmt: skip
    server = started()
    server.receive(calls, 0.0)
    assert len(server.streams) == 1000


def test_headers_may_be_as_long_as_a_block_may():
    """MAX_FRAME_SIZE allows it, so they need no CONTINUATION (RFC 9113, section 4.2)."""
    server, peer = ServerConnection(Limits(), *ANSWERS), ClientConnection(Limits())
    peer.receive(server.data_to_send(), 0.0)
    server.receive(peer.data_to_send(), 0.0)
    peer.request((*REQUEST, (b"x", b"x" * 50_000)), b"")
    data = peer.data_to_send()
    assert data[:3] > b"\0\xc3\0"
    for part in (data[:40_000], data[40_000:]):
        found = server.receive(part, 0.0)
    assert [(len(each.block.fields[-1][1]), each.is_end) for each in found] == [(50_000, True)]


@pytest.mark.parametrize("end", ["answer", "refuse", "respond"])
@pytest.mark.parametrize("size", [0, 100])
def test_first_block_confirms_the_size_of_the_table(end, size):
    """However it is encoded: peers that made their table smaller refuse any other."""
    server, peer, three = started(), hpack.Decoder(), word(3)
    server.receive(CALL, 0.0)
    server.answer([ONE], [b"x"])
    server.receive(setting((1, size)) + headers(stream=3), 0.0)
    server.data_to_send()
    peer.max_allowed_table_size = size
    if end == "answer":
        server.answer([three], [b"x"])
    elif end == "refuse":
        server.refuse([ONE, three], ANSWERS[0])
    else:
        server.respond(three, ANSWERS[0])
    sent = server.data_to_send()
    assert sent[3] == HEADERS
    assert peer.decode(sent[9 : 9 + sent[2]]) == hpack.Decoder().decode(b"\x88")


@pytest.mark.parametrize("wider", [window(1), update(0, 1)])
def test_windows_of_all_streams_are_looked_at_once_a_read(monkeypatch, wider):
    """Else a frame of 13 bytes has a thousand blocked answers looked at."""
    server = started()
    server.receive(window(0), 0.0)
    for stream in (1, 3, 5):
        server.receive(headers(stream=stream), 0.0)
        server.answer([word(stream)], [bytes(100)])
    pumped = []
    monkeypatch.setattr(server, "_pump", lambda stream, state: pumped.append(stream))
    server.receive(wider * 100, 0.0)
    assert pumped == [word(1), word(3), word(5)]


@pytest.mark.parametrize("more", [b"\0\1a\0" * 40, b"\0\x7f\xff\x1e" + b"a" * 4094 + b"\0"])
def test_large_blocks_are_not_kept(more):
    server = started()
    server.receive(headers(END_HEADERS, b"\x83\x86\x04\x02/a" + more), 0.0)
    assert len(server.streams[ONE].block.fields) in (4, 43)
    assert not server.reader.blocks
    assert not server.reader._kinds


def test_stream_takes_no_more_than_its_window():
    server = started(stream_window_bytes=1000)
    server.receive(OPEN + of(DATA, bytes(1000)), 0.0)
    server.acknowledge(ONE, 600)
    server.receive(of(DATA, bytes(600)), 0.0)
    assert ONE in server.streams
    server.receive(of(DATA, b"x"), 0.0)
    assert ONE not in server.streams
    assert server.data_to_send().endswith(of(RST_STREAM, word(3)))


def test_requests_that_wait_are_taken_back_one_by_one():
    """The server takes none; their order, and those that were not taken back, stay."""
    client = ClientConnection(Limits())
    client.receive(setting((3, 0)), 0.0)
    waiting = [client.request(REQUEST, b"") for _ in range(200)]
    for stream in waiting[:-2]:
        client.cancel(stream)
    assert not client.streams
    client.receive(setting((3, 9)), 0.0)
    assert list(client.streams) == waiting[-2:]


@pytest.mark.parametrize("is_over", [False, True])
def test_connections_window_is_opened_again(is_over):
    """Also for data of streams that are over, of which callers may have sent more by then."""
    server = started(connection_window_bytes=70_000)
    server.receive(OPEN, 0.0)
    if is_over:
        server.reset(ONE, ErrorCode.CANCEL)
    for _ in range(20):
        server.receive(of(DATA, bytes(10_000)), 0.0)
        server.acknowledge(ONE, 10_000)
    assert server.data_to_send().count(update(0, 1)[:9]) >= 3


def test_padding_is_given_back_to_the_streams_window():
    server = started(stream_window_bytes=1000)
    server.receive(OPEN, 0.0)
    for _ in range(20):
        server.receive(of(DATA, b"\xff" + bytes(100 + 255), PADDED), 0.0)
        server.acknowledge(ONE, 100)
    assert ONE in server.streams


SIZES = {
    PRIORITY: {5}, RST_STREAM: {4}, PING: {8}, WINDOW_UPDATE: {4}, SETTINGS: {0, 6, 12, 18},
    GOAWAY: set(range(8, 19)),
}  # fmt: skip
"""The lengths that a frame of a kind may have, up to 18 (RFC 9113, section 6)."""


@pytest.mark.parametrize("kind", SIZES)
def test_frame_of_a_wrong_length_is_refused_and_no_other(kind):
    for length in range(19):
        connection = started()
        at = 0 if kind in (PING, SETTINGS, GOAWAY, WINDOW_UPDATE) else 1
        connection.receive(OPEN, 0.0)
        payload, refused = (bytes(18) + b"\1")[-length:] if length else b"", None
        try:
            connection.receive(of(kind, payload, 0, at), 0.0)
        except Http2Error as err:
            refused = err.code
        is_allowed = length in SIZES[kind]
        assert (refused == ErrorCode.FRAME_SIZE_ERROR) == (not is_allowed), (length, refused)


@pytest.mark.parametrize("more", [-1, 0, 1, DEFAULT_FRAME, DEFAULT_FRAME + 1])
def test_long_header_block_leaves_in_frames_of_the_peers_size(more):
    connection = started()
    connection.receive(OPEN, 0.0)
    connection.data_to_send()
    whole = bytes(range(256)) * (2 * DEFAULT_FRAME // 256 + 1)
    whole = whole[: DEFAULT_FRAME + more]
    connection._send_block(ONE, whole, end=True)
    sent, found = connection.data_to_send(), []
    while sent:
        length = int.from_bytes(sent[:3], "big")
        found.append((sent[3], sent[4], sent[FRAME_BYTES : FRAME_BYTES + length]))
        sent = sent[FRAME_BYTES + length :]
    assert b"".join(payload for _, _, payload in found) == whole
    assert [kind for kind, _, _ in found] == [HEADERS] + [CONTINUATION] * (len(found) - 1)
    assert [flags & END_HEADERS for _, flags, _ in found] == [0] * (len(found) - 1) + [END_HEADERS]
    assert [flags & END_STREAM for _, flags, _ in found] == [END_STREAM] + [0] * (len(found) - 1)
    assert all(len(payload) == DEFAULT_FRAME for _, _, payload in found[:-1])
    assert 0 < len(found[-1][2]) <= DEFAULT_FRAME


@pytest.mark.parametrize("is_recognised", [False, True])
def test_half_of_the_connections_window_is_open_after_each_read(is_recognised):
    connection, given = started(connection_window_bytes=70_000), 70_000
    connection.receive(OPEN, 0.0)
    connection.data_to_send()
    for used in range(3_000, 300_000, 3_000):
        if is_recognised:
            connection.account(3, 1_000)
        else:
            connection.receive(of(DATA, bytes(3_000)), 0.0)
            connection.acknowledge(ONE, 3_000)
        sent = connection.data_to_send()
        for at in range(len(sent)):
            if sent[at : at + 9] == update(0, 0)[:9]:
                increment = int.from_bytes(sent[at + 9 : at + 13], "big")
                given += increment
                assert increment > 35_000, "updates are few"
        assert 35_000 <= given - used <= 70_000


def test_connection_takes_a_thousand_small_frames_at_once_and_no_more():
    server = ServerConnection(Limits(), *ANSWERS)
    server.receive(HELLO + of(PING, PING_DATA, ACK, 0) * 999, 0.0)  # its SETTINGS are one, too
    with pytest.raises(Http2Error, match="too many small frames"):
        server.receive(of(PING, PING_DATA, ACK, 0), 0.0)


@pytest.mark.parametrize(("size", "is_whole"), [(4096, True), (4097, False), (20_000, False)])
@pytest.mark.parametrize("padding", [None, 0, 1, 255])
@pytest.mark.parametrize("ends", [False, True])
def test_long_data_are_handed_on_as_they_come(size, is_whole, padding, ends):
    """Wherever reads end; the last part, or the padding behind it, ends the stream."""
    data, content = (END_STREAM * ends, bytes(range(251)) * 100)
    flags, begin = data, FRAME_BYTES
    if padding is not None:
        flags, begin, size = flags | PADDED, begin + 1, size - padding - 1
    content = content[:size]
    payload = content if padding is None else bytes((padding,)) + content + bytes(padding)
    whole = of(DATA, payload, flags)
    for cut in (1, 8, 9, 10, 11, 2000, begin + size - 1, begin + size, len(whole) - 1):
        server = started()
        server.receive(OPEN, 0.0)
        found = server.receive(whole[:cut], 0.0)
        arrived = b"" if is_whole and cut < len(whole) else content[: max(0, cut - begin)]
        assert b"".join(each.data for each in found) == arrived, cut
        found += server.receive(whole[cut:] + ASK, 0.0)
        assert b"".join(each.data for each in found) == content, cut
        assert [each.is_end for each in found] == [False] * (len(found) - 1) + [ends], cut
        assert server.streams[ONE].ended == ends
        assert server.data_to_send().endswith(of(PING, PING_DATA, ACK, 0))


@pytest.mark.parametrize("size", [100_000, 100_001])
@pytest.mark.parametrize("read_bytes", [1 << 20, 10_000])
def test_connection_takes_no_more_than_its_window(size, read_bytes):
    """A frame that is longer than half of it, which is always open."""
    server = started(connection_window_bytes=100_000, max_frame_bytes=1 << 18)
    data, refused = OPEN + of(DATA, bytes(size)), None
    try:
        for at in range(0, len(data), read_bytes):
            server.receive(data[at : at + read_bytes], 0.0)
    except Http2Error as err:
        refused = err.code
    assert refused == (ErrorCode.FLOW_CONTROL_ERROR if size > 100_000 else None)


FIELDS: list[tuple[tuple[bytes, bytes], ...]] = [
    ((b":status", b"404"), (b"content-type", b"text/plain")),
    ((b"grpc-status", b"5"), (b"grpc-message", b"nothing")),
]


@pytest.mark.parametrize("first_window", [0, 3, 1000])
@pytest.mark.parametrize(
    ("say", "expected"),
    [
        (lambda server: server.respond(ONE), [*ANSWERS[0]]),
        (lambda server: server.respond(ONE, FIELDS[0]), [*FIELDS[0]]),
        (lambda server: server.end(ONE), [*ANSWERS[1]]),
        (lambda server: server.end(ONE, FIELDS[1]), [*FIELDS[1]]),
        (lambda server: server.refuse([word(3), ONE], FIELDS[1]), [*FIELDS[1]]),
        (lambda server: server.refuse([ONE], FIELDS[0], b"no"), [*FIELDS[0], b"no"]),
        (lambda server: [server.respond(ONE), server.send(ONE, b"a"), server.send(ONE, b"b"),
                         server.end(ONE, FIELDS[1])], [*ANSWERS[0], b"ab", *FIELDS[1]]),
        (lambda server: [server.respond(ONE), server.send(ONE, b"abcd"), server.end(ONE)],
         [*ANSWERS[0], b"abcd", *ANSWERS[1]]),
        (lambda server: server.answer([ONE], [b"abcde"]), [*ANSWERS[0], b"abcde", *ANSWERS[1]]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("call", [CALL, OPEN])
def test_what_the_application_says_leaves_in_its_order_once_windows_allow(
    call, say, expected, first_window
):
    """On a stream that has ended or not; a caller that still sends is stopped at the end."""
    server, decoder = started(), hpack.Decoder()
    server.receive(window(first_window) + call, 0.0)
    say(server)
    sent = server.data_to_send()
    server.receive(window(1000), 0.0)
    sent += server.data_to_send()
    found: list[Any] = []
    body, ends, kinds = b"", 0, []
    while sent:
        length, kind, flags = int.from_bytes(sent[:3], "big"), sent[3], sent[4]
        payload, sent = sent[FRAME_BYTES : FRAME_BYTES + length], sent[FRAME_BYTES + length :]
        if kind == HEADERS:
            found += [*[body] * bool(body), *decoder.decode(payload, raw=True)]
            body = b""
        elif kind == DATA:
            body += payload
        kinds.append(kind)
        ends += flags & END_STREAM if kind in (HEADERS, DATA) else 0
    assert found + [body] * bool(body) == expected
    is_over = ONE not in server.streams
    assert ends == is_over
    assert kinds.count(RST_STREAM) == (is_over and call is OPEN)


def test_responses_of_known_lengths_are_prepared(monkeypatch):
    """Those of 64 lengths; nothing is encoded for them again."""
    server, streams = started(), count(1, 2)
    server.receive(window(1 << 20) + update(0, 1 << 30), 0.0)

    def answered(sizes):
        for size, stream in zip(sizes, streams, strict=False):
            server.receive(headers(stream=stream), 0.0)
            server.answer([word(stream)], [bytes(size)])

    sizes = [*range(63), DEFAULT_FRAME]
    answered(sizes)
    with monkeypatch.context() as patched:
        patched.setattr(server, "respond", None)
        answered(sizes)
        with pytest.raises(TypeError):
            answered([DEFAULT_FRAME - 1])
    answered([DEFAULT_FRAME + 1])  # of two frames: it is not prepared
    monkeypatch.setattr(server, "respond", None)
    answered(sizes)
    with pytest.raises(TypeError):
        answered([DEFAULT_FRAME + 1])


def test_fields_of_a_block_are_kept_for_later_ones_alone():
    """An application that has read them drops those of a block that no other one shares."""
    server, first = started(), headers(END_HEADERS, b"\x83\x86\x04\x02/a")
    server.receive(first, 0.0)
    server.receive(headers(END_HEADERS, BLOCK, stream=3), 0.0)  # it changes the table
    for stream, is_kept in ((ONE, True), (word(3), False)):
        block = server.streams[stream].block
        raw, fields = block.raw, block.fields
        assert raw
        block.shrink()
        assert (block.raw, block.fields) == ((raw, fields) if is_kept else (b"", ()))
