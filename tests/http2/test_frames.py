"""The engine alone: the table of frames in and frames out, limits, windows, what answers are."""

from itertools import count
from typing import Any

import hpack
import pytest

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
    PADDED,
    PING,
    PREFACE,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    Http2Error,
    word,
)
from serving.http2.limits import Limits
from serving.http2.pieces import Pieces
from serving.http2.server import ServerConnection
from tests.http2.frames import (
    ASK,
    BLOCK,
    CALL,
    CASES,
    GOAWAY_CALM,
    HELLO,
    LIMITS,
    ONE,
    OPEN,
    OVER,
    PING_DATA,
    REQUEST,
    WHOLE,
    headers,
    names_of,
    of,
    setting,
    update,
    window,
)

ANSWER = b"hello"
ANSWERS = ((b":status", b"200"),), ((b"grpc-status", b"0"),)


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


@pytest.mark.parametrize("case", CASES, ids=[" ".join(case[:2]) for case in CASES])
def test_case(case):
    data, expected = case.data, case.expected
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
    server.receive(ASK, 0.0)
    assert len(pumped) == 3, "none is wider since then"


def test_bytes_that_windows_keep_back_are_counted_of_one_stream_and_of_all():
    server = started()
    server.receive(window(3), 0.0)
    for stream, size in ((1, 100), (3, 20), (5, 3)):
        server.receive(headers(stream=stream), 0.0)
        server.answer([word(stream)], [bytes(size)])
    assert [server.num_unsent(word(stream)) for stream in (1, 3, 5)] == [97, 17, 0]
    assert server.num_unsent() == 114


@pytest.mark.parametrize("more", [b"\0\1a\0" * 40, b"\0\x7f\xff\x1e" + b"a" * 4094 + b"\0"])
def test_large_blocks_are_not_kept(more):
    server = started()
    server.receive(headers(END_HEADERS, b"\x83\x86\x04\x02/a" + more), 0.0)
    assert len(server.streams[ONE].block.fields) in (4, 43)
    assert not server.reader.blocks
    assert not server.reader.kinds


def test_stream_takes_no_more_than_its_window():
    server = started(stream_window_bytes=1000)
    server.receive(OPEN + of(DATA, bytes(1000)), 0.0)
    server.acknowledge(ONE, 600)
    server.receive(of(DATA, bytes(600)), 0.0)
    assert ONE in server.streams
    server.receive(of(DATA, b"x"), 0.0)
    assert ONE not in server.streams
    assert server.data_to_send().endswith(of(RST_STREAM, word(3)))


@pytest.mark.parametrize(
    ("before", "text"), [(b"", "speaks HTTP/1.1"), (setting(), "a frame that is too long")]
)
def test_peer_that_begins_with_http1_is_named(before, text):
    client = ClientConnection(Limits())
    with pytest.raises(Http2Error, match=text):
        client.receive(before + b"HTTP/1.1 400 Bad Request\r\n\r\n", 0.0)


@pytest.mark.parametrize(("flags", "is_end"), [(END_HEADERS, False), (WHOLE, True)])
def test_answer_that_is_headers_alone_ends_its_stream(flags, is_end):
    client = ClientConnection(Limits())
    stream = client.request(REQUEST, b"")
    headers = of(HEADERS, b"\x88", flags, int.from_bytes(stream, "big"))
    (event,) = client.receive(setting() + headers, 0.0)
    assert (type(event), event.stream, event.is_end) == (events.HeadersReceived, stream, is_end)
    assert (stream in client.streams) != is_end


@pytest.mark.parametrize("stream", [1, 0x1_0001, 0x7FFF_FFFF])
def test_reserved_bit_of_a_stream_means_nothing(stream):
    server = started()
    data = of(DATA, b"x", END_STREAM, stream | 1 << 31)
    headers_, body = server.receive(headers(END_HEADERS, stream=stream) + data, 0.0)
    assert headers_.stream == body.stream == word(stream)
    assert (body.data, body.is_end) == (b"x", True)


def test_request_without_data_is_one_frame():
    client = ClientConnection(Limits())
    client.data_to_send()
    client.request(REQUEST, b"")
    sent = client.data_to_send()
    assert (sent[3], sent[4]) == (HEADERS, WHOLE)
    assert len(sent) == FRAME_BYTES + int.from_bytes(sent[:3], "big")


@pytest.mark.parametrize("stream", [2, 3, 2**31 - 1])
def test_answer_to_a_call_that_was_not_made_ends_the_connection(stream):
    client = ClientConnection(Limits())
    client.request(REQUEST, b"")
    with pytest.raises(Http2Error, match="HEADERS on an idle stream"):
        client.receive(setting() + of(HEADERS, b"\x88", WHOLE, stream), 0.0)


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


def test_no_more_is_asked_for_on_a_stream_whose_last_frame_has_padding():
    server = started(stream_window_bytes=1000)
    server.receive(OPEN, 0.0)
    server.data_to_send()
    server.receive(of(DATA, b"\xff" + bytes(100 + 255), PADDED | END_STREAM), 0.0)
    assert server.data_to_send() == b""


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


def test_long_answer_leaves_a_mebibyte_at_a_time():
    """Others have their turn in between: `due` says that there is more."""
    server, sizes = started(), []
    server.receive(window(1 << 30) + update(0, 1 << 30) + CALL, 0.0)
    server.data_to_send()
    server.respond(ONE)
    server.send(ONE, Pieces([bytes((2 << 20) + 5)]))
    server.end(ONE)
    while sent := server.data_to_send():
        size = 0
        while sent:
            length, kind = int.from_bytes(sent[:3], "big"), sent[3]
            size += length if kind == DATA else 0
            sent = sent[FRAME_BYTES + length :]
        sizes.append((size, len(server.due)))
    assert sizes == [(1 << 20, 1), (1 << 20, 1), (5, 0)]
