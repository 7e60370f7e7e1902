"""The same conversations, to our engine, to python-hyper's and to nghttp2: the same calls.

Allowed differences, where a peer breaks the rules: an error of a stream here may be one of the
connection there (RFC 9113, section 5.4.2 lets either side escalate), and frames on streams that are
over may be ignored there (section 5.1).
"""

import os
import re
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.events
import h2.exceptions
import hpack
import ngh2
import pytest

from serving import http2
from serving.http2 import events
from serving.http2.client import ClientConnection
from serving.http2.frames import (
    CONTINUATION,
    DATA,
    END_HEADERS,
    END_STREAM,
    HEADERS,
    PADDED,
    PING,
    PREFACE,
    PRIORITIZED,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    Http2Error,
    frame,
    word,
)
from serving.http2.limits import Limits
from serving.http2.server import ServerConnection

NUM_CONVERSATIONS = int(os.environ.get("HTTP2_CONVERSATIONS", "600"))
CONNECTION = bytes(4)
START = PREFACE + frame(SETTINGS, 0, CONNECTION)
REQUEST = [
    (b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a.B/C"), (b":authority", b"x"),
    (b"te", b"trailers"), (b"content-type", b"application/grpc"),
]  # fmt: skip
RESPONSE = ((b":status", b"200"), (b"content-type", b"application/grpc"))
OK = ((b"grpc-status", b"0"),)

Calls = dict[int, list[Any]]
"""By stream: fields, data, whether the caller has ended it, whether it was reset."""


class Caller:
    """Writes conversations that keep to the rules."""

    def __init__(self, generator):
        self.random = generator
        self.encoder = hpack.Encoder()
        self.open: list[int] = []
        self.next = 1
        self.window = 65_000
        """The rest of hyper's window, which is opened after a read."""

    def conversation(self, length):
        """Frames, in order."""
        kinds = [self.request] * 4 + [self.data] * 5 + [self.trailers, self.reset, self.widen]
        kinds += [self.ping, self.priority, self.setting, self.unknown]
        return [self.random.choice(kinds)() for _ in range(length)]

    def padded(self, payload):
        if self.random.random() < 0.8:
            return payload, 0
        length = self.random.randrange(20)
        return bytes((length,)) + payload + bytes(length), PADDED

    def request(self):
        fields = [*REQUEST, (b"grpc-timeout", b"%dm" % self.random.randrange(1, 30))]
        if self.random.random() < 0.3:
            fields.append(
                (b"x-%d" % self.random.randrange(9), self.random.randbytes(8).hex().encode())
            )
        stream, self.next = self.next, self.next + self.random.choice((2, 2, 2, 4))
        flags = END_STREAM if self.random.random() < 0.1 else 0
        if not flags:
            self.open.append(stream)
        return self.block(stream, flags, fields)

    def block(self, stream, flags, fields):
        block = self.encoder.encode(fields, huffman=self.random.random() < 0.5)
        if self.random.random() < 0.2:
            block, flags = b"\0\0\0\0\x10" + block, flags | PRIORITIZED
        if self.random.random() < 0.2 and len(block) > 5:
            cut = self.random.randrange(5, 5 + len(block))
            start = frame(HEADERS, flags, word(stream), block[:cut])
            return start + frame(CONTINUATION, END_HEADERS, word(stream), block[cut:])
        payload, padded = self.padded(block)
        return frame(HEADERS, flags | padded | END_HEADERS, word(stream), payload)

    def any_open(self):
        return self.random.choice(self.open) if self.open else None

    def data(self):
        stream = self.any_open()
        if stream is None:
            return self.ping()
        length = min(self.random.choice((0, 1, 80, 5000, 15_000)), self.window)
        data, flags = self.padded(self.random.randbytes(length))
        self.window -= min(self.window, len(data))
        if self.random.random() < 0.4:
            flags |= END_STREAM
            self.open.remove(stream)
        return frame(DATA, flags, word(stream), data)

    def trailers(self):
        stream = self.any_open()
        if stream is None:
            return self.ping()
        self.open.remove(stream)
        return self.block(stream, END_STREAM, [(b"x-checksum", b"1")])

    def reset(self):
        stream = self.any_open()
        if stream is None:
            return self.ping()
        self.open.remove(stream)
        return frame(RST_STREAM, 0, word(stream), word(8))

    def widen(self):
        stream = self.random.choice((0, self.any_open() or 0))
        return frame(WINDOW_UPDATE, 0, word(stream), word(self.random.randrange(1, 1000)))

    def ping(self):
        return frame(PING, self.random.choice((0, 1)), CONNECTION, self.random.randbytes(8))

    def priority(self):
        return frame(PRIORITY, 0, word(self.next + 100), bytes(5))

    def setting(self):
        name, value = self.random.choice(
            ((4, 0), (4, 70_000), (1, 0), (1, 4096), (5, 20_000), (99, 1))
        )
        return frame(SETTINGS, 0, CONNECTION, name.to_bytes(2, "big") + word(value))

    def unknown(self):
        return frame(self.random.randrange(32, 256), 0xFF, CONNECTION, self.random.randbytes(9))


def reads_of(data, generator):
    cuts = sorted(generator.randrange(len(data)) for _ in range(generator.randrange(4)))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def by_ours(reads):
    """The calls, and whether the connection broke."""
    connection = ServerConnection(Limits(), RESPONSE, OK)
    calls: Calls = {}
    try:
        for data in reads:
            for event in connection.receive(data, 0.0):
                if isinstance(event, events.GoAway):
                    continue
                stream = int.from_bytes(event.stream, "big")
                is_end = True
                if isinstance(event, events.HeadersReceived):
                    is_end = event.is_end
                    calls[stream] = [list(event.block.fields), b"", is_end, False]
                elif isinstance(event, events.DataReceived):
                    is_end = event.is_end
                    calls[stream][1] += event.data
                elif isinstance(event, events.StreamReset):
                    calls[stream][3] = True
                calls[stream][2] = calls[stream][2] or is_end
    except Http2Error:
        return calls, True
    return calls, False


def by_hyper(reads):
    configuration = h2.config.H2Configuration(client_side=False, header_encoding=False)
    connection = h2.connection.H2Connection(configuration)
    calls: Calls = {}
    connection.initiate_connection()
    try:
        for data in reads:
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.RequestReceived):
                    fields = [(bytes(name), bytes(value)) for name, value in event.headers]
                    calls[event.stream_id] = [fields, b"", False, False]
                elif isinstance(event, h2.events.DataReceived):
                    calls[event.stream_id][1] += event.data
                    connection.acknowledge_received_data(
                        event.flow_controlled_length, event.stream_id
                    )
                elif isinstance(event, h2.events.StreamEnded):
                    calls[event.stream_id][2] = True
                elif isinstance(event, h2.events.StreamReset) and event.stream_id in calls:
                    calls[event.stream_id][2:] = [True, True]
    except h2.exceptions.ProtocolError:
        return calls, True
    return calls, False


def by_nghttp2(reads):
    configuration = ngh2.Configuration(auto_window_update=False)
    connection = ngh2.Connection(ngh2.Role.SERVER, configuration)
    calls: Calls = {}
    connection.initiate_connection({ngh2.Setting.INITIAL_WINDOW_SIZE: 1 << 20})
    connection.set_local_window_size(1 << 30)
    try:
        for data in reads:
            connection.receive_data(data)
            for event in connection.events():
                if isinstance(event, ngh2.RequestReceived):
                    calls[event.stream_id] = [list(event.headers), b"", event.end_stream, False]
                elif isinstance(event, ngh2.DataReceived):
                    calls[event.stream_id][1] += event.data
                    calls[event.stream_id][2] |= bool(event.end_stream)
                elif isinstance(event, ngh2.TrailersReceived):
                    calls[event.stream_id][2] = True
                elif isinstance(event, ngh2.StreamClosed) and event.stream_id in calls:
                    calls[event.stream_id][2:] = [True, True]
                elif isinstance(event, ngh2.ConnectionClosed):
                    return calls, True
            connection.data_to_send()
    except ngh2.NGH2Error:
        return calls, True
    return calls, not connection.want_read


@pytest.mark.parametrize("theirs", [by_hyper, by_nghttp2])
def test_conversations_by_the_rules_are_understood_alike(generator, theirs):
    for _ in range(NUM_CONVERSATIONS):
        frames = Caller(generator).conversation(generator.randint(1, 25))
        reads = reads_of(START + b"".join(frames), generator)
        assert by_ours(reads) == theirs(reads)


def test_broken_conversations_are_refused_or_understood_alike(generator):
    """Frames left out, doubled or moved, bytes changed: calls that all accept are the same."""
    num_compared = 0
    for _ in range(NUM_CONVERSATIONS):
        frames = Caller(generator).conversation(generator.randint(2, 15))
        for _ in range(generator.randint(1, 2)):
            at = generator.randrange(len(frames))
            frames[at : at + 1] = generator.choice(([], frames[at : at + 1] * 2, [frames[0]]))
        data = bytearray(b"".join(frames))
        if generator.random() < 0.5 and data:
            data[generator.randrange(len(data))] = generator.randrange(256)
        reads = reads_of(START + bytes(data), generator)
        ours, is_broken = by_ours(reads)
        for theirs in (by_hyper, by_nghttp2):
            others, are_broken = theirs(reads)
            if is_broken or are_broken:
                continue
            num_compared += 1
            for stream in ours.keys() & others.keys():
                fields, body, *ends = ours[stream]
                their_fields, their_body, *their_ends = others[stream]
                if not (ends[1] or their_ends[1]):
                    assert (fields, ends) == (their_fields, their_ends)
                    assert body.startswith(their_body)  # of a long frame ours hands on a part
    assert num_compared > NUM_CONVERSATIONS // 10


@pytest.mark.parametrize("size", [1, 10, 300, 10_000])
def test_responses_that_repeat_mean_what_their_frames_mean(size):
    """However they are cut, and after the same bytes have come to mean another field."""
    client = ClientConnection(Limits())
    client.receive(frame(SETTINGS, 0, CONNECTION), 0.0)
    inserted, repeated = b"\x88\x40\x01x\x01%b", b"\x88\xbe"  # the newest field of the table
    ok = b"\0\x0bgrpc-status\x010"
    answers, expected = b"", {}
    for text in (b"a", b"b"):
        for block in (inserted % text, *[repeated] * 3):
            stream = client.request((*REQUEST,), b"x")
            body = bytes(40) + stream
            answers += frame(HEADERS, END_HEADERS, stream, block) + frame(DATA, 0, stream, body)
            answers += frame(HEADERS, END_HEADERS | END_STREAM, stream, ok)
            expected[stream] = [((b":status", b"200"), (b"x", text)), body, OK]
    got: dict[bytes, list[Any]] = {}
    for at in range(0, len(answers), size):
        for event in client.receive(answers[at : at + size], 0.0):
            if isinstance(event, events.HeadersReceived):
                got[event.stream] = [event.block.fields]
            else:
                got[event.stream].append(event[1])
    assert got == expected
    assert not client.streams


@pytest.mark.parametrize("window", [80, 1000, 65_535])
def test_our_client_and_hypers_server_understand_each_other(generator, window):
    """Any sizes, in any windows, more calls than the server takes at once."""
    client = ClientConnection(Limits(stream_window_bytes=window))
    configuration = h2.config.H2Configuration(client_side=False, header_encoding=False)
    server = h2.connection.H2Connection(configuration)
    server.initiate_connection()
    server.update_settings({3: 5, 4: window})
    client.receive(server.data_to_send(), 0.0)  # hyper's counts at once
    sent = {}
    for number in range(60):
        message = generator.randbytes(generator.choice((0, 1, 300, 20_000)))
        fields = (*REQUEST, (b"x-number", str(number).encode()))
        sent[client.request(fields, message)] = message
    got: dict[bytes, list[Any]] = {}
    bodies: dict[int, bytes] = {}
    left: dict[int, bytes] = {}
    for _ in range(100_000):
        data = client.data_to_send()
        for event in server.receive_data(data) if data else ():
            stream = getattr(event, "stream_id", 0)
            if isinstance(event, h2.events.RequestReceived):
                bodies[stream] = b""
            elif isinstance(event, h2.events.DataReceived):
                bodies[stream] += event.data
                server.acknowledge_received_data(event.flow_controlled_length, stream)
            elif isinstance(event, h2.events.StreamEnded):
                server.send_headers(stream, RESPONSE)
                left[stream] = bodies[stream][::-1]
        for stream in list(left):
            room = min(server.local_flow_control_window(stream), 16_384)
            part, left[stream] = left[stream][:room], left[stream][room:]
            server.send_data(stream, part)
            if not left[stream]:
                server.send_headers(stream, OK, end_stream=True)
                del left[stream]
        answer = server.data_to_send()
        for event in client.receive(answer, 0.0):
            if isinstance(event, events.HeadersReceived):
                got[event.stream] = [event.block.fields, b"", None]
            elif isinstance(event, events.DataReceived):
                got[event.stream][1] += event.data
                client.acknowledge(event.stream, len(event.data))
            elif isinstance(event, events.TrailersReceived):
                got[event.stream][2] = event.fields
        if len(got) == len(sent) and not client.streams:
            break
    assert got == {stream: [RESPONSE, message[::-1], OK] for stream, message in sent.items()}


# The example of the package's README runs


def test_example_is_answered():
    text = (Path(http2.__file__).parent / "README.md").read_text()
    names: dict[str, Any] = {}
    for example in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(example, names)
    answers = [each for each in names["answers"] if isinstance(each, events.DataReceived)]
    assert [each.data for each in answers] == [b"answer to question"]


def test_names_of_the_package_are_few_and_there():
    assert len(http2.__all__) == 7
    assert all(hasattr(http2, name) for name in http2.__all__)
