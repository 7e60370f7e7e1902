"""Recognised or frame by frame: the same bytes are the same calls, wherever reads end."""

from typing import Any

import hpack
import pytest

from serving.http2 import events
from serving.http2.frames import PREFACE, ErrorCode, Http2Error, frame, word
from serving.http2.headers import is_valid
from serving.http2.hpack import INSERT, encode_literally, literal
from serving.http2.limits import Limits
from serving.http2.recogniser import recognise
from serving.http2.server import ServerConnection
from serving.http2.streams import OpenCall
from serving.transports.grpc_headers import COUNTING, VARYING

RESPONSE = ((b":status", b"200"), (b"content-type", b"application/grpc"))
OK = ((b"grpc-status", b"0"),)
PREFIX, SIZE = b"\0\0\0\0\x0c\x0a\x0a", 10
HEADERS = {
    ":method": "POST", ":scheme": "http", ":path": "/a.B/C", ":authority": "x", "te": "trailers",
}  # fmt: skip
FIELDS: list[Any] = [tuple, lambda field: hpack.NeverIndexedHeaderTuple(*field)]
Calls = dict[bytes, list[Any]]


class Peer:
    """Writes frames as clients do."""

    def __init__(self, generator, field=tuple):
        """Have the fields that change inserted into the table, or not: `NeverIndexedHeaderTuple`"""
        self.random = generator
        self.encoder = hpack.Encoder()
        self.field = field
        self.stream = -1
        self.blocks: dict[bytes, bytes] = {}

    def headers(self, *, huffman=True, **more):
        self.stream += 2
        fields = [*HEADERS.items()]
        fields += [self.field((n.replace("_", "-").strip("-"), v)) for n, v in more.items()]
        block = self.blocks[word(self.stream)] = self.encoder.encode(fields, huffman=huffman)
        return frame(1, 4, word(self.stream), block)

    def data(self, stream, flags=1):
        return frame(0, flags, word(stream), PREFIX + self.random.randbytes(SIZE))

    def calls(self, number):
        return b"".join(self.headers() + self.data(self.stream) for _ in range(number))

    def burst(self):
        """A few calls, as grpcio or as nghttp2 sends them, and other frames between them."""
        value = self.random.choice(("1S", "9m", f"{self.random.randrange(10**6)}u"))
        timeout = self.random.choice(({}, {}, {"grpc_timeout": value}))
        if self.random.random() < 0.1:
            timeout = {"traceparent": str(self.random.random())}
        if self.random.random() < 0.1:
            promised = self.random.choice((1, 1, 2)) * (len(PREFIX) + SIZE)
            timeout = {**timeout, "content_length": str(promised)}
        heads, bodies = [], []
        for _ in range(self.random.randint(1, 4)):
            if self.field is not tuple:
                timeout = self.own_values()
            heads.append(self.headers(huffman=self.random.random() < 0.05, **timeout))
            update = frame(8, 0, word(self.stream), word(5))
            body = self.data(self.stream)
            bodies.append(update + body if self.random.random() < 0.5 else body)
        together = self.random.random() < 0.5
        parts = [a + b for a, b in zip(heads, bodies, strict=True)] if together else heads + bodies
        for other in (
            frame(6, 0, bytes(4), bytes(8)),
            frame(8, 0, bytes(4), word(7)),
            frame(3, 0, word(self.stream), word(8)),
        ):
            if self.random.random() < 0.1:
                parts.append(other)
        if self.random.random() < 0.1:
            parts.append(self.stream_of_messages())
        return b"".join(parts)

    def own_values(self):
        """Values of one call alone: good ones, and some that no recognition may take."""
        choose = self.random.choice
        timeout = f"{self.random.randrange(10**6):06}{choose('HMSmun')}"
        values = {"x_same": "same", "grpc_timeout": timeout, "traceparent": str(hash(timeout))[-9:]}
        if self.stream % 100 > 50:  # twice
            values |= {"_x_id": choose("ab"), "x_id": "a", "x_id_": "c", "_x_same": choose("ab")}
        if self.random.random() < 0.1:
            name = choose(("grpc_timeout", "traceparent", "x_same"))
            at, good = choose((0, 2, -1)), values[name]
            bad = [*good]
            bad[at] = choose("\0\r\n \t\x7f-\xff")
            values[name] = choose(("", "-", good[1:], "".join(bad), "".join(bad)))
        return values

    def stream_of_messages(self):
        promised = {"content_length": str(len(PREFIX) + SIZE)}
        head = self.headers(x="stream", **self.random.choice(({}, {}, promised)))
        body = [self.data(self.stream, 0) for _ in range(3)]
        return head + b"".join(body) + self.data(self.stream, self.random.choice((0, 1)))


def server(limits=None, varying=VARYING):
    """A server's connection; without varying values it has no recogniser."""
    connection = ServerConnection(limits or Limits(), RESPONSE, OK, counting=COUNTING)
    if varying is not None:
        connection.recognise(recognise(varying))
    connection.receive(PREFACE + frame(4, 0, bytes(4)), 0.0)
    connection.data_to_send()
    return connection


class Watched:
    """A recogniser that takes every byte: none is read frame by frame before or between."""

    def __init__(self, recogniser):
        self.recogniser, self.at = recogniser, 0

    def __getattr__(self, name):
        return getattr(self.recogniser, name)

    def scan(self, data, at):
        assert at == self.at
        self.at, looked_at = self.recogniser.scan(data, at)
        return self.at, looked_at


def recognised(connection, data):
    """Receive data that the recogniser takes as a whole; return the events."""
    own, watched = connection.recogniser, Watched(connection.recogniser)
    connection.recogniser = watched
    found = connection.receive(data, 0.0)
    connection.recogniser = own
    assert watched.at == len(data)
    return found


def note(event, calls, connection):
    """Add an event to the calls; return how many messages of it were recognised."""
    match event:
        case events.CallsReceived():
            assert event.token == "token"
            shared = {name for name, _ in event.shared.fields}
            assert shared.isdisjoint(event.values), "each call has a value of its own"
            for at, (stream, message) in enumerate(event.messages.items()):
                own = {name: column[at] for name, column in event.values.items()}
                fields = dict(event.shared.fields) | own
                calls.setdefault(stream, [fields]).extend([PREFIX + message, "end"])
            return len(event.messages)
        case events.StreamReset():
            fields = dict(event.state.block.fields)
            calls.setdefault(event.stream, [fields]).append(int(event.code))
            return 0
        case events.HeadersReceived():
            calls[event.stream] = [dict(event.block.fields)]
        case events.MessagesReceived():
            calls[event.stream] += [PREFIX + message for message in event.messages]
        case events.DataReceived():
            calls[event.stream].append(event.data)
            state = connection.streams.get(event.stream)
            if state is not None and event.data[: len(PREFIX)] == PREFIX:
                connection.expect(state.block, (PREFIX, SIZE), "token")
    if not isinstance(event, events.TrailersReceived) and event.is_end:
        calls[event.stream].append("end")
    return len(event.messages) if isinstance(event, events.MessagesReceived) else 0


def calls_of(connection, reads):
    """Read bytes.

    Returns:
        The events of each stream, the number of recognised messages, and how it ended.
    """
    calls: Calls = {}
    num_recognised = 0
    try:
        for data in reads:
            for event in connection.receive(data, 0.0):
                num_recognised += note(event, calls, connection)
    except Http2Error as err:
        return calls, num_recognised, str(err)
    for stream, state in connection.streams.items():
        if isinstance(state, OpenCall) and not state.ended:  # recognised, and not reported yet
            calls.setdefault(stream, [dict(state.block.fields)])
    return calls, num_recognised, ""


def warmed(generator, limits=None):
    """A peer, and a server that knows its calls."""
    peer, connection = Peer(generator), server(limits)
    calls_of(connection, [peer.calls(3)])
    return peer, connection


def reads_of(data, generator):
    cuts = sorted(generator.randrange(len(data)) for _ in range(len(data) // 300))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@pytest.mark.parametrize("field", FIELDS, ids=["inserted", "not inserted"])
def test_recognised_calls_are_those_of_the_long_way(generator, field):
    total = 0
    for _ in range(120):
        peer = Peer(generator, field)
        data = b"".join(peer.burst() for _ in range(30))
        reads = reads_of(data, generator)
        by_frames, none, end = calls_of(server(varying=None), reads)
        recognised, number, same_end = calls_of(server(), reads)
        assert (none, end, same_end) == (0, "", "")
        assert recognised == by_frames
        total += number
    assert total > (2_800 if field is tuple else 4_000)


RUNS = {
    "calls": lambda peer, more: peer.headers(**more()) + peer.data(peer.stream),
    "updated": lambda peer, more: (
        peer.headers(**more()) + frame(8, 0, word(peer.stream), word(5)) + peer.data(peer.stream)
    ),
    "headers first": lambda peer, more: (
        b"".join(peer.headers() for _ in range(260))
        + b"".join(peer.data(peer.stream - each) for each in range(518, -2, -2))
    ),
}


@pytest.mark.parametrize(
    ("kind", "has_values"),
    [
        (kind, has)
        for kind in RUNS
        for has in (False, True)
        if (kind, has) != ("headers first", True)
    ],
)
def test_calls_that_come_again_and_again_are_found_as_runs(
    generator, kind, has_values, monkeypatch
):
    """No header block of theirs is looked at, and all that are of one kind are one event."""
    peer, connection = Peer(generator, FIELDS[1]), server(Limits(max_streams=1 << 14))

    def more():
        size, number = 12, generator.randrange(10**12)
        return {"huffman": False, "x_id": f"{number:0{size}}"} if has_values else {}

    for _ in range(8):
        calls_of(connection, [RUNS[kind](peer, more)])
    data = b"".join(RUNS[kind](peer, more) for _ in range(10))
    for name in ("read", "read_trailers"):
        monkeypatch.setattr(connection.reader, name, None)
    found = recognised(connection, data)
    number = 2600 if kind == "headers first" else 10
    assert {type(each) for each in found} == {events.CallsReceived}
    assert sum(len(each.messages) for each in found) == number
    assert len(found) == (10 if kind == "headers first" else 1)


def test_calls_with_messages_of_another_length_are_found_as_runs_too(generator):
    peer, connection = Peer(generator), server()
    for _ in range(3):
        connection.receive(peer.headers(), 0.0)
    block = connection.streams[word(peer.stream)].block
    for size in (10, 20, 300):
        connection.expect(block, (PREFIX, size), "token")
        data = b"".join(
            peer.headers() + frame(0, 1, word(peer.stream), PREFIX + bytes(size)) for _ in range(3)
        )
        (found,) = recognised(connection, data)
        assert [*found.messages.values()] == [bytes(size)] * 3


def test_messages_of_a_stream_are_found_as_runs(generator):
    peer, connection = Peer(generator), server()
    calls_of(connection, [peer.stream_of_messages() for _ in range(3)])
    head = peer.headers(x="stream")
    connection.receive(head + peer.data(peer.stream, 0), 0.0)
    for number, flags in ((5, 0), (1, 1)):
        (found,) = recognised(connection, peer.data(peer.stream, flags) * number)
        assert (len(found.messages), found.is_end) == (number, flags == 1)


@pytest.mark.parametrize("is_stream", [False, True])
@pytest.mark.parametrize("is_longer", [False, True])
def test_layouts_of_one_length_are_not_mixed_up(generator, is_longer, is_stream):
    """The one that was learned last counts, though there is a pattern of the other one."""
    peer, connection = Peer(generator), server()
    longer, shorter = (PREFIX + b"\1", SIZE - 1), (PREFIX, SIZE)
    both = (shorter, longer) if is_longer else (longer, shorter)
    layouts = dict(zip(("first", "last"), both, strict=True))
    for _ in range(3):  # the first inserts fields, the third repeats the second
        connection.receive(peer.headers(), 0.0)
    block = connection.streams[word(peer.stream)].block
    for token in ("first", "last"):
        connection.expect(block, layouts[token], token)
        for start in [PREFIX + b"\1"] * 3 + [PREFIX + b"\4"] * 3:
            texts = [start + generator.randbytes(SIZE - 1) for _ in range(2)]
            if is_stream:
                data = peer.headers()
                data += b"".join(frame(0, 0, word(peer.stream), text) for text in texts)
            else:
                data = b"".join(peer.headers() + frame(0, 1, word(peer.stream), t) for t in texts)
            seen = []
            for each in connection.receive(data, 0.0):
                if isinstance(each, events.DataReceived):
                    seen.append(each.data)
                elif not isinstance(each, events.HeadersReceived):
                    assert each.token == token
                    own = each.messages
                    own = own.values() if isinstance(own, dict) else own
                    seen += [layouts[token][0] + message for message in own]
            assert seen == texts


def test_calls_have_a_pattern_once_they_come_again(generator):
    """Compiling one takes milliseconds."""
    peer, connection = Peer(generator), server()
    for has_pattern in (False, False, True):  # the second comes before the first has an answer
        calls_of(connection, [peer.headers() + peer.data(peer.stream)])
        assert bool(connection.recogniser.runs) == has_pattern


@pytest.mark.parametrize("field", FIELDS, ids=["inserted", "not inserted"])
def test_windows_are_opened_as_if_no_call_was_recognised(generator, field):
    """Each read brings one message; the same bytes are sent after it."""
    limits = Limits(connection_window_bytes=65_535)
    peer, one, other = Peer(generator, field), server(limits, None), server(limits)
    num_updates = num_recognised = 0
    while num_updates < 2:
        value = {"x_id": f"{generator.randrange(10**10):010}"} if peer.stream % 3 else {}
        head, is_stream = peer.headers(**value), generator.random() < 0.2
        reads = [head] + [peer.data(peer.stream, 0)] * 2 if is_stream else []
        reads += [b"" if is_stream else head]
        reads[-1] += peer.data(peer.stream)
        calls_of(one, reads)
        num_recognised += calls_of(other, reads)[1]
        sent = one.data_to_send()
        assert other.data_to_send().replace(NO_TABLE, b"") == sent
        num_updates += sent.count(frame(8, 0, bytes(4), bytes(4))[:9])
        for each in (one, other):
            each.answer([word(peer.stream)], [b""])
        assert one.data_to_send() == other.data_to_send()
    assert num_recognised > 2000


NO_TABLE = frame(4, 0, bytes(4), b"\0\1" + bytes(4))


@pytest.mark.parametrize(("number", "is_asked"), [(31, False), (32, True)])
@pytest.mark.parametrize(("before", "is_often"), [(96, True), (97, False)])
def test_every_fourth_call_that_fills_the_table_is_enough(
    generator, number, is_asked, before, is_often
):
    """And 32 of them."""
    peer, connection = Peer(generator), server()
    calls_of(connection, [peer.calls(before - 1)])
    calls_of(connection, [peer.headers(x_id="0" * 10) + peer.data(peer.stream)])  # a new kind
    for _ in range(number):
        value = f"{generator.randrange(10**10):010}"
        data = peer.headers(huffman=False, x_id=value) + peer.data(peer.stream)
        calls_of(connection, [data])
    assert (NO_TABLE in connection.data_to_send()) == (is_asked and is_often)


def test_values_of_recognised_calls_are_those_of_the_reference(generator):
    """A run of blocks that differ in values; python-hyper's decoder reads each of them."""
    peer, connection, decoder = Peer(generator, FIELDS[1]), server(), hpack.Decoder()
    total = 0
    for _ in range(200):
        data = b"".join(
            peer.headers(huffman=False, **peer.own_values()) + peer.data(peer.stream)
            for _ in range(generator.randint(1, 8))
        )
        calls, number, _ = calls_of(connection, [data])
        total += number
        for stream, block in peer.blocks.items():
            fields = decoder.decode(block, raw=True)
            if stream in calls and calls[stream][-1] == "end":
                assert calls[stream][0] == dict(fields)
                assert all(map(is_valid, fields))
                continue
            assert not all(map(is_valid, fields))
        peer.blocks.clear()
    assert total > 500
    assert any(each.states for each in connection.recogniser.templates.values()), "found as runs"


def test_calls_whose_headers_change_are_recognised(generator):
    """But for those whose table is full, so that other fields come again."""
    for ids in ({}, {"traceparent": "00"}):
        peer, connection = Peer(generator), server()
        total = 0
        for number in range(300):
            more = {name: f"{value}-{generator.random()}" for name, value in ids.items()}
            data = peer.headers(grpc_timeout=f"{number}m", **more)
            if number % 2:
                data += frame(8, 0, word(peer.stream), word(5))
            data += peer.data(peer.stream)
            calls, recognised, _ = calls_of(connection, [data])
            assert calls[word(peer.stream)][0][b"grpc-timeout"] == b"%dm" % number
            total += recognised
        assert total > 250
        connection.forget()
        data = peer.headers(grpc_timeout="7m") + peer.data(peer.stream)
        assert calls_of(connection, [data])[1] == 0


@pytest.mark.parametrize("number", [8, 9, 100])
def test_pattern_of_calls_has_few_values(generator, number):
    """A pattern with hundreds would take a tenth of a second and a megabyte."""
    peer, connection = Peer(generator, FIELDS[1]), server()
    for _ in range(6):
        more = {f"x{each}": str(generator.randrange(10**8, 10**9)) for each in range(number)}
        data = peer.headers(huffman=False, **more) + peer.data(peer.stream)
        calls, _, _ = calls_of(connection, [data])
        own = [value for name, value in calls[word(peer.stream)][0].items() if name[:1] == b"x"]
        assert own == [value.encode() for value in more.values()]
    assert bool(connection.recogniser.templates) == (number <= 8)


@pytest.mark.parametrize("is_last", [True, False])
@pytest.mark.parametrize("number", [1, 3])
def test_field_behind_a_shorter_value_is_not_taken_for_its_end(generator, is_last, number):
    """Blocks with values of both lengths are known, and the field's index may be a value's byte."""
    peer, connection = Peer(generator), server()
    fields = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
    more = (b"accept-encoding", b"gzip, deflate")  # 0x90
    last = [] if is_last else [(b"x-last", b"1")]
    for size in (3, 4, 3, 4, 3):
        for others in ([], [more]) if size == 3 else ([],):
            reads, sent = b"", {}
            for _ in range(6 if not others else number):
                peer.stream += 2
                own = (b"x-id", b"%d" % generator.randrange(10 ** (size - 1), 10**size))
                sent[word(peer.stream)] = own, *others
                block = encode_literally([*fields, own, *others, *last])
                reads += frame(1, 4, word(peer.stream), block) + peer.data(peer.stream)
            calls, _, _ = calls_of(connection, [reads])
            for stream, own_fields in sent.items():
                assert calls[stream][0] == dict([*fields, *own_fields, *last])


def test_bytes_of_changed_blocks_mean_what_the_table_says_now(generator):
    peer, connection, index = Peer(generator), server(), b"\xbe"
    fields = [(name.encode(), value.encode()) for name, value in HEADERS.items() if name != ":path"]
    for path in (b"/a", b"/b"):
        total = 0
        for first in (literal((b":path", path), INSERT), *[index] * 9):
            peer.stream += 2
            own = (b"grpc-timeout", b"%05dm" % generator.randrange(10**5))
            head = frame(1, 4, word(peer.stream), first + encode_literally([*fields, own]))
            read = [head + peer.data(peer.stream)]
            calls, recognised, _ = calls_of(connection, read)
            assert calls[word(peer.stream)][0] == dict([*fields, (b":path", path), own])
            total += recognised
        assert total > 5


@pytest.mark.parametrize(
    ("huffman", "more", "num_repeated"),
    [(False, {}, 0), (True, {}, 0), (False, {"authorization": "x" * 900}, 0), (False, {}, 8)],
    ids=["values as they are", "Huffman's code", "long blocks", "few values"],
)
def test_peer_whose_values_fill_the_table_is_asked_to_use_none(
    generator, huffman, more, num_repeated
):
    """As grpcio's clients do it, unless its blocks would not repeat then, or most do already."""
    peer, connection = Peer(generator), server()
    is_asked = not (huffman or more or num_repeated)
    num_asked = 0
    for number in range(1, 201):
        for _ in range(num_repeated):
            calls_of(connection, [peer.calls(1)])
            connection.answer([word(peer.stream)], [b""])
        timeout, name = f"{generator.randrange(10**5):05}u", str(generator.random())[:10]
        data = peer.headers(huffman=huffman, grpc_timeout=timeout, x_id=name, **more)
        data += peer.data(peer.stream)
        calls, recognised, _ = calls_of(connection, [data])
        fields = calls[word(peer.stream)][0]
        assert (fields[b"grpc-timeout"], fields[b"x-id"]) == (timeout.encode(), name.encode())
        connection.answer([word(peer.stream)], [b""])
        if NO_TABLE in connection.data_to_send():
            num_asked += 1
            peer.encoder.header_table_size = 0
            connection.receive(frame(4, 1, bytes(4)), 0.0)
        if number > 100 and is_asked:
            assert recognised
            assert any(each.states for each in connection.recogniser.templates.values()), (
                "found as runs"
            )
    assert num_asked == is_asked


def test_calls_are_the_same_wherever_a_read_ends(generator):
    peer = Peer(generator)
    warm = peer.calls(4)
    data = b"".join(peer.burst() for _ in range(6)) + peer.stream_of_messages()
    expected, _, _ = calls_of(server(varying=None), [warm, data])
    total = 0
    for at in range(len(data) + 1):
        found, number, _ = calls_of(server(), [warm, data[:at], data[at:]])
        assert found == expected
        total += number
    assert total > len(data)
    one_by_one = [warm, *(data[at : at + 1] for at in range(len(data)))]
    assert calls_of(server(), one_by_one)[0] == expected


@pytest.mark.parametrize("field", FIELDS, ids=["inserted", "not inserted"])
def test_mutated_bytes_are_the_same_either_way(generator, field):
    """Calls, states and ends: a peer's errors are errors on both paths."""
    for _ in range(600):
        peer = Peer(generator, field)
        data = bytearray(b"".join(peer.burst() for _ in range(8)))
        for _ in range(generator.randint(1, 3)):
            at = generator.randrange(len(data))
            data[at : at + generator.randint(0, 2)] = generator.randbytes(generator.randint(0, 2))
        reads = [bytes(data[: len(data) // 2]), bytes(data[len(data) // 2 :])]
        one, other = server(varying=None), server()
        by_frames, _, end = calls_of(one, reads)
        recognised, _, same_end = calls_of(other, reads)
        assert same_end == end
        assert set(one.streams) == set(other.streams)
        if not end:  # else events of the last read are lost
            assert recognised == by_frames


def test_only_what_a_peer_may_open_is_recognised(generator):
    peer, connection = warmed(generator, Limits(max_streams=10))
    calls, _, _ = calls_of(connection, [peer.calls(20)])
    assert len(calls) == 7
    assert connection.data_to_send().count(frame(3, 0, b"", word(7))[:5]) == 13


def test_stream_that_is_opened_twice_is_an_error(generator):
    peer, connection = warmed(generator)
    call = peer.calls(1)
    assert calls_of(connection, [call])[1] == 1
    assert "over" in calls_of(connection, [call])[2]


def test_calls_before_an_error_are_not_kept(generator):
    """They have messages: the connection that broke may be kept until its answers have left."""
    peer, connection = warmed(generator)
    assert connection.recogniser.runs
    with pytest.raises(Http2Error):
        connection.receive(peer.calls(3) + frame(6, 0, bytes(4), b"12345"), 0.0)
    assert connection.events == []
    goaway = frame(7, 0, bytes(4), word(peer.stream) + word(6))
    assert connection.data_to_send().endswith(goaway)


@pytest.mark.parametrize("place", [0, 1, 2])
def test_frames_of_a_stream_that_was_reset_are_no_call_within_a_run(generator, place):
    """Its headers are trailers that nobody waits for; the calls around it are calls."""
    peer, connection = warmed(generator)
    connection.receive(peer.headers(), 0.0)
    reset = word(peer.stream)
    connection.reset(reset, ErrorCode.CANCEL)
    late = frame(1, 4, reset, peer.blocks[reset]) + peer.data(peer.stream)
    before = peer.calls(1)
    parts = [peer.calls(1) for _ in range(3)]
    parts.insert(place, late)
    calls, _, end = calls_of(connection, [before, b"".join(parts)])
    assert reset not in calls
    assert (len(calls), end) == (4, "")


def test_message_is_not_taken_twice(generator):
    peer, connection = warmed(generator)
    data = peer.headers() + peer.data(peer.stream) + peer.data(peer.stream)
    calls, _, _ = calls_of(connection, [data])
    assert calls[word(peer.stream)][-1] == 5  # STREAM_CLOSED
    assert not connection.streams.get(word(peer.stream))


@pytest.mark.parametrize("window", [0, 3, 1 << 20])
def test_answers_keep_to_the_peers_windows(generator, window):
    connection = ServerConnection(Limits(), RESPONSE, OK).recognise(recognise(VARYING))
    settings = frame(4, 0, bytes(4), b"\0\4" + word(window))
    connection.receive(PREFACE + settings, 0.0)
    peer = Peer(generator)
    for _ in range(6):
        calls_of(connection, [peer.calls(1)])
        connection.answer([word(peer.stream)], [b"0123456789"])
    sent = connection.data_to_send().count(b"0123456789")
    assert sent == (6 if window > 3 else 0)
    connection.receive(frame(4, 0, bytes(4), b"\0\4" + word(10)), 0.0)
    assert not connection.streams
    assert not connection.num_unsent()


@pytest.mark.parametrize(
    ("window", "increment", "later"), [(100, 200, 100), (16_384, 255, 16_384), (16_384, 200, 10)]
)
@pytest.mark.parametrize("more", [{}, {"traceparent": ""}], ids=["same headers", "others"])
def test_updates_of_recognised_calls_count(generator, window, increment, later, more):
    """Each answer just fits the window of its stream, though that is set in the same read."""
    peer, connection = Peer(generator), server()
    setting = frame(4, 0, bytes(4), b"\0\4" + word(window))
    calls_of(connection, [setting, frame(8, 0, bytes(4), word(1 << 20))])
    total = 0
    for _ in range(4):
        calls, streams = [], []
        for _ in range(5):
            head = peer.headers(**{name: str(generator.random()) for name in more})
            update = frame(8, 0, word(peer.stream), word(increment))
            calls.append(head + update + peer.data(peer.stream))
            streams.append(word(peer.stream))
        calls.append(frame(4, 0, bytes(4), b"\0\4" + word(later)))
        total += calls_of(connection, [b"".join(calls)])[1]
        connection.answer(streams, [bytes(later + increment)] * 5)
        assert not connection.num_unsent()
        connection.answer(streams, [b""] * 5)
    assert total >= 14


def test_calls_whose_messages_come_later_have_their_whole_window(generator):
    """Each answer just fits it."""
    peer, connection = Peer(generator), server()
    calls_of(connection, [frame(4, 0, bytes(4), b"\0\4" + word(100))])
    for _ in range(6):
        heads = [(peer.headers(), word(peer.stream)) for _ in range(5)]
        streams = [stream for _, stream in heads]
        bodies = [peer.data(int.from_bytes(stream, "big")) for stream in streams]
        calls_of(connection, [b"".join(head for head, _ in heads), b"".join(bodies)])
        connection.answer(streams, [bytes(100)] * 5)
        assert not connection.num_unsent()
        connection.answer(streams, [b""] * 5)


def test_messages_beyond_the_window_of_a_stream_are_not_taken(generator):
    size = len(PREFIX) + SIZE
    peer, connection = Peer(generator), server(Limits(stream_window_bytes=5 * size))
    for _ in range(4):
        connection.receive(peer.headers() + peer.data(peer.stream, 0) * 2, 0.0)
        block = connection.streams[word(peer.stream)].block
        connection.expect(block, (PREFIX, SIZE), "token", calls=False)
    connection.data_to_send()
    _, taken, *rest = connection.receive(peer.headers() + peer.data(peer.stream, 0) * 7, 0.0)
    assert len(taken.messages) == 5
    assert [(type(each), each.code) for each in rest] == [(events.StreamReset, 3)]
    assert frame(3, 0, word(peer.stream), word(3)) in connection.data_to_send()


def test_promised_length_counts_for_recognised_calls_too(generator):
    """Blocks whose message has come in two frames are those of calls with two."""
    peer, connection = Peer(generator), server()
    size = len(PREFIX) + SIZE
    for flags in (0, 0, 1):
        data = peer.headers(content_length=str(2 * size)) + peer.data(peer.stream, flags)
        calls, number, _ = calls_of(connection, [data])
        assert not number
    assert calls[word(peer.stream)][-1] == 1  # PROTOCOL_ERROR


def test_headers_of_streams_are_events_though_their_messages_are_recognised(generator):
    peer, connection = Peer(generator), server()
    for number in range(4):
        data = peer.headers() + peer.data(peer.stream, 0) * 2
        found = connection.receive(data, 0.0)
        received = [events.MessagesReceived] if number > 0 else [events.DataReceived] * 2
        assert [*map(type, found)] == [events.HeadersReceived, *received]
        state = connection.streams[word(peer.stream)]
        connection.expect(state.block, (PREFIX, SIZE), "token", calls=False)


def test_layouts_of_a_block_are_few(generator):
    peer, connection = Peer(generator), server()
    connection.receive(peer.headers(), 0.0)
    block = connection.streams[word(peer.stream)].block
    for number in range(1000):
        connection.expect(block, (PREFIX, number), "token")
        assert len(block.kind.messages) == number % 16 + 1


def test_prepared_responses_mean_the_same_though_the_first_was_kept_back():
    """A prepared block must not refer to a table that later fields change."""
    connection, encoder, decoder = server(), hpack.Encoder(), hpack.Decoder()
    connection.receive(frame(4, 0, bytes(4), b"\0\4" + word(10)), 0.0)
    for stream, size in ((1, 60), (3, 61), (5, 60)):
        block = encoder.encode([(":method", "POST"), (":scheme", "http"), (":path", "/a")])
        call = frame(1, 4, word(stream), block) + frame(0, 1, word(stream), bytes(100))
        connection.receive(call, 0.0)
        connection.answer([word(stream)], [bytes(size)])
        connection.receive(frame(4, 0, bytes(4), b"\0\4" + word(1 << 16)), 0.0)  # wider
        fields: list[tuple[bytes, bytes]] = []
        sent, at = connection.data_to_send(), 0
        while at < len(sent):
            end = at + 9 + int.from_bytes(sent[at : at + 3], "big")
            if sent[at + 3] == 1:
                fields += decoder.decode(sent[at + 9 : end], raw=True)
            at = end
        assert tuple(fields) == (*RESPONSE, *OK)


def test_what_is_recognised_is_bounded_and_forgotten_together(generator):
    peer, connection = Peer(generator, FIELDS[1]), server(Limits(max_streams=1 << 12))
    own: Any = connection.recogniser
    most = [0, 0, 0]
    for size in range(5, 65):
        for _ in range(5):
            value = f"{generator.randrange(10**5):0{size}}"
            data = peer.headers(huffman=False, x_id=value) + peer.data(peer.stream)
            calls_of(connection, [data])
            kept = own.runs, own.templates, own._shapes
            most = [max(before, len(each)) for before, each in zip(most, kept, strict=True)]
    assert 8 < most[0] <= 17, "patterns of headers, and those of data"
    assert 8 < most[1] <= 32
    assert 8 < most[2] <= 32
    assert own.runs
    connection.forget()
    assert (own.runs, own.templates, own._shapes) == ({}, {}, {})
