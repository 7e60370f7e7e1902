"""The sieve of the h2 transport, before a real HTTP/2 session and in a server."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import hpack
import pytest
from hyperframe.frame import (
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
)
from hyperframe.frame import WindowUpdateFrame as WindowUpdate
from hypothesis import given, settings
from hypothesis import strategies as st

import serving
from serving import Classifier
from serving.config import BatchingConfig, ServerConfig
from serving.protocols.digits_v1.wire import encode_request
from serving.transports.h2 import http2
from serving.transports.h2.connection import RESPONSE
from serving.transports.h2.heads import Head
from serving.transports.h2.limits import Limits
from serving.transports.h2.queue import Queue
from serving.transports.h2.sieve import Sieve
from tests.support.h2_connection import PREFACE, Connection, message, request_headers
from tests.support.h2_server import h2_server

MODEL = Path(serving.__file__).parent / "pretrained" / "digits"
TIMEOUT_S = 10.0
IMAGE_BYTES = 100
BODY = message(bytes(IMAGE_BYTES))
REFUSAL = (*RESPONSE, (b"grpc-status", b"8"), (b"grpc-retry-pushback-ms", b"100"))
HEAD = Head(None, math.inf, None, trusted=False)


class Room(Queue):
    """A queue that has room for as many images as a test says."""

    def __init__(self) -> None:
        super().__init__(1)
        self.num_free = 0

    def room(self, timeout_s: float) -> float:
        return self.num_free


@dataclass
class Sifted:
    """A caller, a sieve, an HTTP/2 session, and what became of the calls."""

    room: Room = field(default_factory=Room)
    session: http2.Session = field(
        default_factory=lambda: http2.open_session(Limits(max_message_bytes=1 << 20))
    )
    encoder: hpack.Encoder = field(default_factory=hpack.Encoder)
    read: dict[int, list[tuple[bytes, bytes]]] = field(default_factory=dict)
    """The headers that HTTP/2 has read, by stream."""
    bodies: dict[int, bytes] = field(default_factory=dict)
    refused: list[int] = field(default_factory=list)
    num_credited: int = 0
    never_refused: list[list[tuple[bytes, bytes]]] = field(default_factory=list)
    """Headers of calls that have room."""

    def __post_init__(self) -> None:
        self.session.receive_data(PREFACE + SettingsFrame(0).serialize())
        self.session.events()
        answer = http2.encode_without_table(REFUSAL)
        self.sieve = Sieve(self.session, self.room, IMAGE_BYTES, 4, answer)
        self.decoder = hpack.Decoder()
        self.session.data_to_send()

    def call(self, stream: int, body: bytes = BODY, **headers: str) -> list[Frame]:
        block = self.encoder.encode(request_headers(**headers))
        return [
            HeadersFrame(stream, block, flags=["END_HEADERS"]),
            DataFrame(stream, body, flags=["END_STREAM"]),
        ]

    def receive(self, data: bytes) -> None:
        """Read as the transport does: what finds no room is refused and learned."""
        free = self.room.num_free
        self.sieve.receive_data(memoryview(data))
        for event in self.sieve.events():
            if isinstance(event, http2.RequestReceived):
                self.read[event.stream_id] = list(event.headers)
            elif isinstance(event, http2.DataReceived):
                self.bodies[event.stream_id] = event.data
                free -= 1
                if free < 0 and self.read[event.stream_id] not in self.never_refused:
                    self.sieve.learn(event.stream_id, HEAD)
            assert not isinstance(event, http2.ConnectionClosed)
        for frame in parsed(self.sieve.data_to_send()):
            if isinstance(frame, HeadersFrame):
                assert dict(self.decoder.decode(frame.data, raw=True))[b"grpc-status"] == b"8"
                assert "END_STREAM" in frame.flags
                self.refused.append(frame.stream_id)
            elif isinstance(frame, WindowUpdate):
                self.num_credited += frame.window_increment

    def send(self, *frames: Frame) -> None:
        self.receive(b"".join(frame.serialize() for frame in frames))


def parsed(data: bytes) -> Iterator[Frame]:
    while data:
        frame, length = Frame.parse_frame_header(memoryview(data[:9]))
        frame.parse_body(memoryview(data[9 : 9 + length]))
        yield frame
        data = data[9 + length :]


@pytest.fixture
def sifted() -> Sifted:
    """A sieve that has learned one block; streams 1 and 3 are over."""
    sifted = Sifted()
    for stream in (1, 3):  # the first block fills the table
        sifted.send(*sifted.call(stream))
    assert sorted(sifted.bodies) == [1, 3]
    return sifted


def test_calls_like_one_that_was_refused_do_not_reach_http2(sifted: Sifted) -> None:
    streams = range(7, 47, 2)
    sifted.send(*(frame for stream in streams for frame in sifted.call(stream)))
    assert sifted.refused == list(streams)
    assert sorted(sifted.bodies) == [1, 3]
    assert sifted.num_credited == len(BODY) * len(streams)
    assert sifted.sieve.refused == {HEAD: len(streams)}


def test_the_first_calls_take_the_room_that_there_is(sifted: Sifted) -> None:
    sifted.room.num_free = 3
    sifted.send(*(frame for stream in range(7, 27, 2) for frame in sifted.call(stream)))
    assert sorted(sifted.bodies) == [1, 3, 7, 9, 11]
    assert sifted.refused == list(range(13, 27, 2))


def test_requests_that_do_not_wait_in_the_queue_are_left_alone(sifted: Sifted) -> None:
    large = message(bytes(5 * IMAGE_BYTES))
    sifted.send(*sifted.call(7, large), *sifted.call(9))
    assert sifted.bodies[7] == large
    assert sifted.refused == [9]


def test_other_tokens_leave_calls_to_http2(sifted: Sifted) -> None:
    sifted.sieve.forget()
    sifted.send(*sifted.call(7))
    assert 7 in sifted.bodies


def test_a_block_that_has_come_to_mean_something_else_reaches_http2(sifted: Sifted) -> None:
    def send(stream: int, field: bytes) -> None:
        head = HeadersFrame(stream, literals + field, flags=["END_HEADERS"])
        sifted.send(head, DataFrame(stream, BODY, flags=["END_STREAM"]))

    def caller(name: bytes) -> bytes:
        return b"\x40\x01x\x01" + name  # into the table, as its latest entry

    literals = b"\x83\x86\x04\x01/\x01\x01a"  # POST, http, a path and an authority
    latest = b"\xbe"
    send(5, caller(b"a"))
    send(7, latest)
    send(9, latest)
    assert sifted.refused == [9]
    send(11, caller(b"b"))
    send(13, latest)
    assert sifted.refused == [9]
    assert sifted.read[13][-1] == (b"x", b"b")
    frames: list[Frame] = []
    for stream, end in ((15, caller(b"c")), (17, latest), (19, caller(b"d"))):
        frames.append(HeadersFrame(stream, literals + end, flags=["END_HEADERS"]))
        frames.append(DataFrame(stream, BODY, flags=["END_STREAM"]))
    sifted.send(*frames)
    send(21, latest)
    assert sifted.read[21][-1] == (b"x", b"d")


def test_what_else_comes_on_a_refused_stream_is_dropped(sifted: Sifted) -> None:
    sifted.send(*sifted.call(7), RstStreamFrame(7, 8), WindowUpdate(7, 10), *sifted.call(9, x="1"))
    assert sifted.refused == [7]
    assert 9 in sifted.bodies


def test_a_call_without_a_message_is_left_to_http2(sifted: Sifted) -> None:
    sifted.send(*sifted.call(5, b""))
    assert not sifted.refused


def test_a_long_frame_is_not_waited_for(sifted: Sifted) -> None:
    sifted.send(*sifted.call(7))
    sifted.receive((10_000).to_bytes(3, "big") + b"\1\4" + (9).to_bytes(4, "big") + bytes(500))
    assert not sifted.sieve.is_over
    assert 9 not in sifted.refused


def test_a_long_header_block_is_left_to_http2(sifted: Sifted) -> None:
    literals = b"\x83\x86\x04\x01/\x01\x01a"  # POST, http, a path and an authority
    beyond = 2000 - 127  # of the value's length, what its first 7 bits do not hold
    long = b"\x00\x01x\x7f" + bytes((beyond & 0x7F | 0x80, beyond >> 7)) + b"a" * 2000
    for stream in (7, 9, 11):
        head = HeadersFrame(stream, literals + long, flags=["END_HEADERS"])
        sifted.send(head, DataFrame(stream, BODY, flags=["END_STREAM"]))
    assert sorted(sifted.bodies) == [1, 3, 7, 9, 11]
    assert not sifted.refused


def test_it_is_over_when_nothing_was_refused_for_a_while(sifted: Sifted) -> None:
    sifted.send(*sifted.call(7))
    sifted.room.num_free = 1000
    for stream in range(9, 309, 2):
        assert not sifted.sieve.is_over or stream > 200
        sifted.send(*sifted.call(stream))
    assert sifted.sieve.is_over
    assert sifted.sieve.is_useful


Script = list[tuple[str, str]]
KINDS = ("call", "window", "apart", "late reset", "ping")
STEPS = st.tuples(st.sampled_from(KINDS), st.sampled_from(["", "", "", "a", "b", "c"]))


def frames_of(sifted: Sifted, script: Script) -> Iterable[Frame]:
    """Calls whose headers repeat or do not, their frames in several orders, and other frames."""
    for number, (kind, value) in enumerate(script):
        stream = 2 * number + 1
        changed = {"x_caller": f"{value}{number // 7}"} if value else {}
        head, body = sifted.call(stream, BODY, **changed)
        if kind == "window":
            yield from (head, WindowUpdate(stream, 5), body)
        elif kind == "apart":
            yield from (head, PingFrame(0, b"12345678"), body)
        else:
            yield from (head, body)
        if kind == "late reset":
            yield RstStreamFrame(stream, 8)
        elif kind == "ping":
            yield PingFrame(0, b"12345678")


@settings(deadline=None)
@given(st.lists(STEPS, max_size=60), st.lists(st.integers(1, 400), min_size=1), st.integers(0, 3))
def test_every_call_is_read_rightly_or_refused_however_its_bytes_are_cut(
    script: Script, sizes: list[int], num_free: int
) -> None:
    sifted = Sifted()
    sifted.room.num_free = num_free
    frames = list(frames_of(sifted, script))
    decoder = hpack.Decoder()  # of all blocks, as if none had been left out
    sent: dict[int, Any] = {
        frame.stream_id: decoder.decode(frame.data, raw=True)
        for frame in frames
        if isinstance(frame, HeadersFrame)
    }
    sifted.never_refused = [each for each in sent.values() if each[-1][1].startswith(b"c")]
    data = b"".join(frame.serialize() for frame in frames)
    at = number = 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        sifted.receive(data[at : at + size])
        at, number = at + size, number + 1
    assert sorted([*sifted.bodies, *sifted.refused]) == sorted(sent)
    assert set(sifted.bodies.values()) <= {BODY}
    assert all(sifted.read[stream] == sent[stream] for stream in sifted.bodies)
    assert not any(sent[stream] in sifted.never_refused for stream in sifted.refused)


def test_a_server_refuses_and_counts_what_its_sieve_takes_out() -> None:
    batching = BatchingConfig(queue_capacity=8, max_request_images=8)
    body = message(encode_request(bytes(range(256)) * 3 + bytes(16)))
    limits = Limits(max_message_bytes=4_000_000)
    with (
        Classifier.load(MODEL, device="cpu", batching=batching) as classifier,
        h2_server(classifier, limits, ServerConfig(port=0)) as address,
        Connection(address, TIMEOUT_S) as connection,
    ):
        connection.open()
        connection.acknowledge()
        streams = iter(range(1, 10_000, 2))
        for number in range(20):
            burst = [next(streams) for _ in range(100)]
            frames: list[Frame] = []
            for stream in burst:
                frames.append(connection.headers(stream, request_headers()))
                frames.append(DataFrame(stream, body, flags=["END_STREAM"]))
            connection.send(*frames)
            connection.wait(partial(connection.statuses.keys().__ge__, set(burst)))
            connection.send(RstStreamFrame(burst[-1], 8))
            if number % 4 == 3:  # changes HPACK's table
                connection.call(stream := next(streams), body, x_number=str(number))
                assert connection.reply(stream).status == 0
        statuses = Counter(connection.statuses.values())
        assert set(statuses) == {0, 8}
        assert statuses.total() == 20 * 100 + 5
        counts = classifier.metrics.snapshot().requests
    assert counts == {
        ("Classify", "OK"): statuses[0], ("Classify", "RESOURCE_EXHAUSTED"): statuses[8]
    }  # fmt: skip
