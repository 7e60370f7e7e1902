"""HTTP/2 as a table, frames in and frames out: the cases of h2spec 2.6, attacks, limits, windows.

h2spec (github.com/summerwind/h2spec) counts 146, and one more if it is strict. It follows RFC 7540;
a row says where RFC 9113 differs. None is left out. Where h2spec accepts several endings, a row
names ours. Three runners read the rows: the engine alone (tests/http2/test_frames.py), a
simulated server (tests/simulation/test_frames.py) and a server's process
(tests/serving/transports/test_frames.py).
"""

from itertools import product
from typing import NamedTuple

import hpack
from hpack.huffman import HuffmanEncoder
from hpack.huffman_constants import REQUEST_CODES, REQUEST_CODES_LENGTH

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
    frame,
    word,
)
from serving.http2.limits import Limits

LIMITS = Limits(burst_resets=100)
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
    """A request with a content-length, and DATA frames of the given lengths."""
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

_ROWS: list[tuple[str, str, bytes, str] | tuple[str, str, bytes, str, str]] = [
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
    ("generic/3.8/1", "GOAWAY", of(GOAWAY, bytes(8) + b"bye", 0, 0) + ASK, PONG,
     "server: it closes the connection of a peer that says GOAWAY"),
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
     b"INVALID\r\n\r\n", GOAWAY_PROTOCOL,
     "server: it answers other protocols as they do"),
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
    ("frames/35", "a window of 2^31 - 1", update(0, MAX_WINDOW - 65_535) + ASK, PONG),
    ("frames/36", "and of one byte more", update(0, MAX_WINDOW - 65_534), GOAWAY_WINDOW),
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
    ("http2/7/1", "GOAWAY of an unknown code", of(GOAWAY, word(0) + word(0xFF), 0, 0) + ASK, PONG,
     "server: it closes the connection of a peer that says GOAWAY"),
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
    ("attacks/2", "rapid resets (CVE-2023-44487)", calls(200, CANCEL), GOAWAY_CALM,
     "process: its limit of resets is higher"),
    ("attacks/3", "resets that the server has to send (CVE-2025-8671)", calls(500, update(1, 0)),
     GOAWAY_CALM,
     "process: its limit of resets is higher"),
    ("attacks/4", "a header block without end (CVE-2024-27316)",
     headers(0) + of(CONTINUATION) * 100, GOAWAY_CALM),
    ("attacks/5", "a long header block (CVE-2024-27316)",
     headers(0) + of(CONTINUATION, bytes(16_000)) * 5, GOAWAY_CALM),
    ("attacks/6", "pings (CVE-2019-9512)", of(PING, bytes(8), ACK, 0) * 2000, GOAWAY_CALM),
    ("attacks/7", "priorities (CVE-2019-9513)", priority(9) * 2000, GOAWAY_CALM),
    ("attacks/8", "settings (CVE-2019-9515)", setting() * 2000, GOAWAY_CALM),
    ("attacks/9", "empty data (CVE-2019-9518)", OPEN + of(DATA) * 2000, GOAWAY_CALM),
    ("attacks/10", "bytes of data", OPEN + of(DATA, b"x") * 2000, GOAWAY_CALM),
    ("attacks/11", "padding", OPEN + of(DATA, b"\x20" + bytes(32), PADDED) * 2000, GOAWAY_CALM,
     "server: the application answers the call before it is an attack"),
    ("attacks/12", "windows", update(0, 1) * 2000, GOAWAY_CALM),
    ("attacks/13", "unknown frames", UNKNOWN * 2000, GOAWAY_CALM),
    ("attacks/15", "unknown frames in pieces", of(20, bytes(1_100), 0, 0) * 2000, GOAWAY_CALM),
    ("attacks/16", "trailers of a stream that was reset",
     OPEN + update(1, 0) + headers() * 2000, GOAWAY_CALM),
    ("attacks/14", "data on a stream that is over", CALL + of(DATA, b"x", END_STREAM) * 2000,
     GOAWAY_CALM),
]  # fmt: skip


class Case(NamedTuple):
    """A row of the table."""

    number: str
    """h2spec's, or our own."""
    text: str
    data: bytes
    """The peer's bytes; `opened` has them behind a preface."""
    expected: str
    """The frame that comes, or the last DATA's length."""
    apart: str = ""
    """Who can't be asked, and why: "server", a whole one, or "process"; empty for nobody."""

    @property
    def opened(self) -> bytes:
        """The bytes of a whole connection."""
        is_whole = self.data.startswith((PREFACE, b"INVALID"))
        return self.data if is_whole else HELLO + self.data

    def is_for(self, *askers: str) -> bool:
        """Whether a whole server's frames are the same: how many DATA there are, nobody knows."""
        return not self.expected.startswith("DATA") and not self.apart.startswith(askers)

    def fault(self, names: list[str]) -> str:
        """Say what is wrong with the frames of a whole server, if anything is.

        A call that is none of gRPC's is answered before it has come whole.
        """
        is_early = self.expected.startswith("RST_STREAM") and EARLY in names
        ends = any(name.startswith("GOAWAY") for name in names)
        if self.expected not in names and not is_early:
            return f"expected {self.expected}, got {names}"
        if ends != self.expected.startswith("GOAWAY"):
            return f"expected {'a' if not ends else 'no'} GOAWAY, got {names}"
        return ""


EARLY = "RST_STREAM NO_ERROR"
CASES = [Case(*row) for row in _ROWS]


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
