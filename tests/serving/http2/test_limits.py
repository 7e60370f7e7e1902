"""Limits on each kind of frame, on the engine alone: each class of HTTP/2's known attacks."""

import hpack
import pytest

from serving.http2 import events
from serving.http2.client_side import ClientConnection
from serving.http2.frames import (
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    Http2Error,
    Limits,
    frame,
    word,
)
from serving.http2.server_side import ServerConnection

RESPONSE = ((b":status", b"200"),)
OK = ((b"grpc-status", b"0"),)
ONE, CONNECTION = word(1), bytes(4)
REQUEST = ((b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a"), (b"te", b"trailers"))
BLOCK = hpack.Encoder().encode(REQUEST)
CALL = frame(HEADERS, END_HEADERS, ONE, BLOCK)
START = PREFACE + frame(SETTINGS, 0, CONNECTION)


def connection(**limits):
    server = ServerConnection(Limits(**limits), RESPONSE, OK)
    server.receive(START, 0.0)
    server.data_to_send()
    return server


def calls(number, after):
    """Calls that begin alike, without the header table, and the rest of each stream."""
    block = b"\x83\x86\x04\x02/a"
    streams = [word(stream) for stream in range(1, 2 * number, 2)]
    return b"".join(frame(HEADERS, END_HEADERS, s, block) + after(s) for s in streams)


def test_what_callers_do_in_passing_is_no_flood():
    """Each call with two updates of windows and a ping, as grpcio's."""
    server = connection()

    def follow(stream):
        update = frame(WINDOW_UPDATE, 0, stream, word(5)) + frame(
            WINDOW_UPDATE, 0, CONNECTION, word(5)
        )
        ping = frame(PING, 0, CONNECTION, bytes(8))
        return update + ping + frame(DATA, END_STREAM, stream, bytes(800))

    for at in range(10):
        data = calls(1000, follow)
        server = connection()
        server.receive(data, float(at))
        assert len(server.streams) == 1000


def test_headers_may_be_as_long_as_a_block_may():
    """MAX_FRAME_SIZE allows it, so they need no CONTINUATION (RFC 9113, section 4.2)."""
    server, peer = ServerConnection(Limits(), RESPONSE, OK), ClientConnection(Limits())
    peer.receive(server.data_to_send(), 0.0)
    server.receive(peer.data_to_send(), 0.0)
    peer.request((*REQUEST, (b"x", b"x" * 50_000)), b"")
    data = peer.data_to_send()
    assert data[:3] > b"\0\xc3\0"
    for part in (data[:40_000], data[40_000:]):
        found = server.receive(part, 0.0)
    assert [(len(block.fields[-1][1]), ended) for _, _, block, ended in found] == [(50_000, True)]


@pytest.mark.parametrize(
    ("headers", "is_good"),
    [
        ({}, True),
        ({"connection": "close"}, False),
        ({"x": " blank"}, False),
        ({"x": "a\nb"}, False),
        ({"content-length": "-1"}, False),
        ({"content-length": "x"}, False),
        ({":path": ""}, False),
        ({"content-length": ""}, False),
        ({"transfer-encoding": ""}, False),
    ],
)
def test_malformed_requests_are_reset(headers, is_good):
    fields = {":method": "POST", ":scheme": "http", ":path": "/a", "te": "trailers"} | headers
    encoder = hpack.Encoder()
    block = encoder.encode(fields.items())
    server = connection()
    found = server.receive(frame(HEADERS, END_HEADERS, ONE, block), 0.0)
    assert len(found) == len(server.streams) == is_good
    assert is_good or server.data_to_send() == frame(RST_STREAM, 0, ONE, word(1))
    again = encoder.encode(fields.items())
    found = server.receive(frame(HEADERS, END_HEADERS, word(3), again), 0.0)  # from the table now
    assert len(found) == is_good


@pytest.mark.parametrize("end", ["answer", "refuse", "respond"])
@pytest.mark.parametrize("size", [0, 100])
def test_first_block_confirms_the_size_of_the_table(end, size):
    """However it is encoded: peers that made their table smaller refuse any other."""
    server, peer = connection(), hpack.Decoder()
    server.receive(frame(HEADERS, END_HEADERS | END_STREAM, ONE, BLOCK), 0.0)
    server.answer([ONE], [b"x"])
    again = frame(HEADERS, END_HEADERS | END_STREAM, word(3), BLOCK)
    server.receive(frame(SETTINGS, 0, CONNECTION, b"\0\1" + word(size)) + again, 0.0)
    server.data_to_send()
    peer.max_allowed_table_size = size
    if end == "answer":
        server.answer([word(3)], [b"x"])
    elif end == "refuse":
        server.refuse([ONE, word(3)], RESPONSE)
    else:
        server.respond(word(3), RESPONSE)
    sent = server.data_to_send()
    assert sent[3] == HEADERS
    assert peer.decode(sent[9 : 9 + sent[2]]) == hpack.Decoder().decode(b"\x88")


@pytest.mark.parametrize("wider", [
    frame(SETTINGS, 0, CONNECTION, b"\0\4" + word(1)), frame(WINDOW_UPDATE, 0, CONNECTION, word(1)),
])  # fmt: skip
def test_windows_of_all_streams_are_looked_at_once_a_read(monkeypatch, wider):
    """Else a frame of 13 bytes has a thousand blocked answers looked at."""
    server = connection()
    server.receive(frame(SETTINGS, 0, CONNECTION, b"\0\4" + word(0)), 0.0)
    for stream in (1, 3, 5):
        server.receive(frame(HEADERS, END_HEADERS | END_STREAM, word(stream), BLOCK), 0.0)
        server.answer([word(stream)], [bytes(100)])
    pumped = []
    monkeypatch.setattr(server, "_pump", lambda stream, state: pumped.append(stream))
    server.receive(wider * 100, 0.0)
    assert pumped == [word(1), word(3), word(5)]


@pytest.mark.parametrize("more", [b"\0\1a\0" * 40, b"\0\x7f\xff\x1e" + b"a" * 4094 + b"\0"])
def test_large_blocks_are_not_kept(more):
    server, block = connection(), b"\x83\x86\x04\x02/a" + more
    server.receive(frame(HEADERS, END_HEADERS, ONE, block), 0.0)
    opened = server.streams[ONE].block
    assert len(opened.fields) in (4, 43)
    assert not server.reader.blocks
    assert not server.reader._kinds


def test_padded_frame_may_come_in_any_parts():
    data = CALL + frame(DATA, PADDED | END_STREAM, ONE, b"\5" + bytes(5000) + bytes(5))
    for cut in (len(CALL) + 9, len(CALL) + 10, len(data) - 6, len(data) - 5, len(data) - 1):
        server = connection()
        found = server.receive(data[:cut], 0.0) + server.receive(data[cut:], 0.0)
        assert sum(len(part) for kind, _, part, _ in found if kind == events.DATA) == 5000
        assert found[-1][3]


def test_other_protocols_are_recognised():
    for data in (b"GET / HTTP/1.1\r\n", b"\x16\x03\x01", PREFACE[:-1] + b"x"):
        with pytest.raises(Http2Error, match="not HTTP/2"):
            ServerConnection(Limits(), RESPONSE, OK).receive(data, 0.0)


def test_stream_takes_no_more_than_its_window():
    server = connection(stream_window_bytes=1000)
    server.receive(CALL + frame(DATA, 0, ONE, bytes(1000)), 0.0)
    assert ONE in server.streams
    server.acknowledge(ONE, 600)
    server.receive(frame(DATA, 0, ONE, bytes(600)), 0.0)
    assert ONE in server.streams
    server.receive(frame(DATA, 0, ONE, b"x"), 0.0)
    assert ONE not in server.streams
    assert server.data_to_send().endswith(frame(RST_STREAM, 0, ONE, word(3)))


def test_requests_that_wait_are_taken_back_one_by_one():
    """Of a server that takes none; their order, and those that were not taken back, stay."""
    client = ClientConnection(Limits())
    client.receive(frame(SETTINGS, 0, CONNECTION, b"\0\3" + word(0)), 0.0)
    waiting = [client.request(RESPONSE, b"") for _ in range(200)]
    for stream in waiting[:-2]:
        client.cancel(stream)
    assert not client.streams
    client.receive(frame(SETTINGS, 0, CONNECTION, b"\0\3" + word(9)), 0.0)
    assert list(client.streams) == waiting[-2:]


@pytest.mark.parametrize("is_over", [False, True])
def test_connections_window_is_opened_again(is_over):
    """Also for data of streams that are over, of which callers may have sent more by then."""
    server = connection(connection_window_bytes=70_000)
    server.receive(CALL, 0.0)
    if is_over:
        server.reset(ONE, ErrorCode.CANCEL)
    for _ in range(20):
        server.receive(frame(DATA, 0, ONE, bytes(10_000)), 0.0)
        server.acknowledge(ONE, 10_000)
    assert server.data_to_send().count(frame(WINDOW_UPDATE, 0, CONNECTION, b"abcd")[:9]) >= 3


def test_padding_is_given_back_to_the_streams_window():
    server = connection(stream_window_bytes=1000)
    server.receive(CALL, 0.0)
    for _ in range(20):
        server.receive(frame(DATA, PADDED, ONE, b"\xff" + bytes(100 + 255)), 0.0)
        server.acknowledge(ONE, 100)
    assert ONE in server.streams
