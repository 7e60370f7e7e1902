"""The server's side of a connection: requests in, responses out.

Calls that repeat others byte for byte are recognised, a run of frames at a time. Callers repeat
their header blocks, and a block that changes no table means the same each time. So do the first
bytes of their messages. One compiled pattern finds how far a run of such frames goes, and `struct`
cuts it into stream numbers and messages: both in C, so that a call costs well under a microsecond
here. Clients send the headers and the data of a call together (grpcio, with an update of the
stream's window between them), or first the headers of all calls and then their data (nghttp2).
Blocks that differ in some values, such as deadlines, are cut by the same pattern: see README.md.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple

from serving.http2 import events, frames
from serving.http2.connection import Connection, Stream
from serving.http2.frames import DATA, HEADERS, ErrorCode, Http2Error, frame, word
from serving.http2.headers import TIMEOUT, Block, Layout, OpenCall, Shape
from serving.http2.hpack import Fields, encode_literally

_UPDATE = bytes((0, 0, 4, frames.WINDOW_UPDATE, 0))
_UPDATE_BYTES = frames.FRAME_BYTES + 4
_MAX_PARTS = 64
"""Lengths of messages whose responses are prepared."""
_MAX_MESSAGES = 16
"""Layouts that are recognised on streams of a kind."""
_MIN_VAIN = 32
"""Blocks that inserted values of one call into our table, before the peer is asked to use none."""
_MAX_PATTERNS = 16
"""First bytes of frames that are looked for on a connection."""
# Four bytes, an odd number below 2^31: a client's streams are odd (RFC 9113, section 5.1.1).
_STREAM = b"[\x00-\x7f]..[" + b"".join(b"\\x%02x" % byte for byte in range(1, 256, 2)) + b"]"
_NO_VALUES: dict[bytes, Sequence[bytes]] = {}
_Rows = list[Any]
"""Tuples of a stream, the values that its header block does not share, and its message, as far as
it has them."""


class _Run(NamedTuple):
    """How frames of one kind are found, and cut into their parts."""

    pattern: re.Pattern[bytes]
    """Its last group is the kind of run, a name in `cuts`."""
    cuts: dict[str, Struct]
    shape: Shape
    """Of header blocks."""
    block_bytes: int
    """Their length, if they differ in no value; else 0."""
    num_bytes: int
    """Of a DATA frame's payload."""
    first: bytes
    """The first bytes of the frame that ends a call."""
    layout: Layout


@lru_cache(maxsize=256)  # compiling one takes some milliseconds
def _run(shape: Shape, layout: Layout) -> _Run:
    """Describe the frames of calls with header blocks of a shape and messages of a layout.

    Only the first frames of a run are matched in full: the next ones have the same block, but for
    values, and flags.
    """
    # A frame is three bytes of length, a kind, flags, a stream and the payload: here HEADERS (1)
    # with END_HEADERS (4), DATA (0) with END_STREAM (1) or nothing, WINDOW_UPDATE (8) of 4 bytes.
    prefix, size = layout
    num_bytes = len(prefix) + size
    first = num_bytes.to_bytes(3, "big") + b"\0\1"
    has_values = len(shape) > 1
    headers = re.escape(_length(shape).to_bytes(3, "big")) + rb"\x01\x04"
    data = re.escape(num_bytes.to_bytes(3, "big")) + rb"\x00"
    message = re.escape(prefix) + b".{%d}" % size

    def block(kind: bytes, which: bytes) -> bytes:
        """Match a header block."""
        parts = []
        for number, (size, _, value) in enumerate(shape):
            name = b"%b_block_%d" % (kind, number)
            same = b"(?P=%b)" % name if which == b"next" else b"(?P<%b>.{%d})" % (name, size)
            parts += [same, value]
        return b"".join(parts)

    def call(kind: bytes, which: bytes) -> bytes:
        """Match HEADERS and DATA of a call."""
        same = b"(?P=%b_%b)" % (kind, which)
        # As many more bytes for each answer, less than 256: see `OpenCall.send_credit`.
        more = b"(?P<more>[^\x00])" if which == b"first" else b"(?P=more)"
        update = rb"\x00\x00\x04\x08\x00%b\x00\x00\x00%b" % (same, more)
        between = update if kind == b"updated" else b""
        start = b"(?P<%b_%b>%b)" % (kind, which, _STREAM) + block(kind, which)
        return headers + start + between + data + rb"\x01" + same + message

    def calls(kind: bytes) -> bytes:
        """Match a run of them."""
        return call(kind, b"first") + b"(?:" + call(kind, b"next") + b")*"

    runs = {
        "updated": calls(b"updated"),
        "calls": calls(b"calls"),
        "headers": headers + _STREAM + block(b"headers", b"first")
        + b"(?:" + headers + _STREAM + block(b"headers", b"next") + b")*",
        "data": data + rb"(?P<flags>[\x00\x01])" + _STREAM + message
        + b"(?:" + data + b"(?P=flags)" + _STREAM + message + b")*",
    }  # fmt: skip
    if has_values:  # a stream without its message would have to keep them
        del runs["headers"]
    values = "".join(f"{number}x{size}s" if size else f"{number}x" for number, size, _ in shape)
    cut_headers, cut_data = f"5x4s{values}", f"{len(prefix)}x{size}s"
    cuts = {
        "updated": Struct(f"{cut_headers}13x9x{cut_data}"),
        "calls": Struct(f"{cut_headers}9x{cut_data}"),
        "headers": Struct(cut_headers),
        "data": Struct(f"5x4s{cut_data}"),
    }
    # An empty group behind each alternative: `lastgroup` is then the name of the one that matched.
    pattern = b"|".join(run + b"(?P<%b>)" % kind.encode() for kind, run in runs.items())
    block_bytes = 0 if has_values else shape[0][0]
    return _Run(re.compile(pattern, re.DOTALL), cuts, shape, block_bytes, num_bytes, first, layout)


def _length(shape: Shape) -> int:
    """Return the bytes of a header block."""
    return sum(number + size for number, size, _ in shape)


class ServerConnection(Connection):
    """A server's connection."""

    def __init__(
        self, limits: frames.Limits, response: Fields, trailers: Fields, not_http2: bytes = b""
    ) -> None:
        """Begin; our settings are ready to be sent.

        Args:
            limits: the peer's limits.
            response: the fields that begin every response, but refusals.
            trailers: the fields that end those that went well.
            not_http2: all that is sent to a peer that speaks something else.
        """
        super().__init__(limits, is_server=True)
        self._response, self._trailers, self._not_http2 = response, trailers, not_http2
        self._preface = frames.PREFACE
        self._keeps_table = limits.header_table_bytes > 0
        self._parts: dict[int, tuple[bytes, bytes, bytes, bytes]] = {}
        """By length of a message: the bytes between stream numbers in a whole response."""

    def receive(self, data: bytes, now_s: float) -> list[events.Event]:
        """See `Connection`: a read of recognised calls goes no further than here."""
        # Only where a frame begins at the first byte: the pattern knows nothing of halves.
        if not self._runs or self._rest or self._partial or self._skip or self._block:
            return super().receive(data, now_s)
        self._now_s, self.events = now_s, []
        try:
            at, looked_at = self._scan(data, 0)
            if at < len(data):
                self._take_frames(data, at, looked_at)
        except Http2Error as err:
            self.go_away(err.code)
            raise
        return self.events

    def _take_preface(self, data: bytes) -> int:
        part = data[: len(self._preface)]
        if not self._preface.startswith(part):
            if self._not_http2:
                self._has_gone, self._ready = True, [self._not_http2]
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "not HTTP/2")
        self._preface = self._preface[len(part) :]
        return len(part)

    def announce_end(self) -> None:
        """Ask the peer to open no more streams; those already on the way are still accepted."""
        self._go_away(word(frames.MAX_WINDOW), ErrorCode.NO_ERROR)

    def answer(self, streams: Sequence[bytes], messages: Sequence[bytes]) -> None:
        """Send whole responses; nothing happens on streams whose callers have left.

        Args:
            streams: whose responses have not begun.
            messages: the data of each.
        """
        open_streams, ready, window = self.streams, self._ready, self._first_window
        for stream, message in zip(streams, messages, strict=True):
            state, size = open_streams.get(stream), len(message)
            parts = self._parts.get(size)
            if state is None:
                continue
            # Whole and at once: the windows have room, and nothing of the stream is left to read.
            if parts is not None and state.ended and self.send_window >= size <= window:
                del open_streams[stream]
                self.send_window -= size
                headers, data, trailers, end = parts
                ready += (headers, stream, data, stream, message, trailers, stream, end)
                continue
            self.respond(stream)
            self.send(stream, message)
            self.end(stream)
            if parts is None:
                self._learn(size)

    def respond(self, stream: bytes, fields: Fields = ()) -> None:
        """Begin a response; with the usual fields if there are none."""
        if stream in self.streams:
            block = encode_literally(fields) if fields else self.encoder.encode(self._response)
            self._send_block(stream, block, end=False)

    def send(self, stream: bytes, data: bytes) -> None:
        """Send a part of a response, as the windows allow."""
        if stream in self.streams:
            self._send(stream, data)

    def end(self, stream: bytes, trailers: Fields = ()) -> None:
        """End a response; with the usual trailers if there are none."""
        if stream not in self.streams:
            return
        state = self._full(stream)
        if trailers or state.unsent:
            self._send(stream, b"", encode_literally(trailers or self._trailers))
            return
        self._send_block(stream, self.encoder.encode(self._trailers), end=True)
        self._finish(stream, state)

    def refuse(self, streams: Iterable[bytes], fields: Fields, data: bytes = b"") -> None:
        """Send calls whose response has not begun the same one, and end them."""
        block = encode_literally(fields)
        head = _head(HEADERS, frames.END_HEADERS | (0 if data else frames.END_STREAM), len(block))
        for stream in streams:
            state = self.streams.get(stream)
            if state is None:
                continue
            if self.encoder.resized:  # the next block has to begin with the table's new size
                self._send_block(stream, block, end=not data)
            else:
                self._ready += (head, stream, block)
            if data:
                self._send(stream, data, b"")
                continue
            del self.streams[stream]
            if not state.ended:
                self._stop(stream)

    def _learn(self, size: int) -> None:
        """Prepare whole responses with a message of a length."""
        if size > frames.DEFAULT_FRAME:
            return
        response = self.encoder.repeated(self._response)
        trailers = self.encoder.repeated(self._trailers)
        if response is None or trailers is None:  # one that comes later would move the other
            response, trailers = map(encode_literally, (self._response, self._trailers))
        if (
            len(self._parts) >= _MAX_PARTS
        ):  # all at once: to know the oldest costs more than it saves
            self._parts.clear()
        self._parts[size] = (
            _head(HEADERS, frames.END_HEADERS, len(response)),
            response + _head(DATA, 0, size),
            _head(HEADERS, frames.END_HEADERS | frames.END_STREAM, len(trailers)),
            trailers,
        )

    def _take_setting(self, name: int, value: int) -> None:
        super()._take_setting(name, value)
        if name == frames.HEADER_TABLE_SIZE:
            self._parts.clear()

    def _finish(self, stream: bytes, state: Stream) -> None:
        state.finished = True
        del self.streams[stream]
        if not state.ended:
            self._stop(stream)

    def _stop(self, stream: bytes) -> None:
        """Have a caller stop sending, now that it has its response (RFC 9113, section 8.1)."""
        self._note_reset(stream)
        self._ready.append(frame(frames.RST_STREAM, 0, stream, word(ErrorCode.NO_ERROR)))

    def _is_idle(self, stream: bytes) -> bool:
        return stream > self.last_stream or not stream[3] & 1

    def _take_block(
        self, stream: bytes, flags: int, raw: bytes, data: bytes = b"", at: int = 0, /
    ) -> int | None:
        if not stream[3] & 1:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a stream of an even number")
        if stream <= self.last_stream:
            if stream not in self.streams and stream not in self._reset:
                raise Http2Error(ErrorCode.STREAM_CLOSED, "HEADERS on a stream that is over")
            self._take_trailers(stream, flags, raw)
            return None
        block, limits = self.reader.read(raw), self.limits
        if self._keeps_table and self.reader.num_vain >= _MIN_VAIN:
            self._give_up_table(stream, block)
        ended = flags & frames.END_STREAM != 0
        self.last_stream = stream
        if self._has_gone:
            self._note_reset(stream)
        elif block.kind.is_malformed or (ended and block.kind.content_length):
            self._fail(stream, ErrorCode.PROTOCOL_ERROR)
        elif len(self.streams) >= limits.max_streams:
            # REFUSED_STREAM: nothing was done, so a client may try again (RFC 9113, section 8.7).
            self._note_reset(stream)
            self._ready.append(frame(frames.RST_STREAM, 0, stream, word(ErrorCode.REFUSED_STREAM)))
        elif (
            block.kind.is_call
            and not (ended or block.is_repeated)
            and (end := self._take_message(stream, block, data, at))
        ):
            return end
        else:
            state = self.streams[stream] = Stream(block, limits.stream_window_bytes)
            state.content_left = block.kind.content_length
            if ended:
                state.ended = True
            self.events.append((events.HEADERS, stream, block, ended))
        self._small_frames.left += limits.small_frames_per_request
        return None

    def _give_up_table(self, stream: bytes, block: Block) -> None:
        """Ask the peer to use no table if every fourth call inserts values of its own.

        They move the indices of all fields. Without a table blocks are longer, and the same but for
        these values: some 300 bytes instead of 100, and a fourth of the time.
        """
        if 8 * self.reader.num_vain > int.from_bytes(stream, "big"):  # of every second number
            self._keeps_table = False
            if self.reader.repeats_without_table(block):
                no_table = frames.HEADER_TABLE_SIZE.to_bytes(2, "big") + bytes(4)
                self._ready.append(frame(frames.SETTINGS, 0, frames.CONNECTION, no_table))

    def _take_message(self, stream: bytes, block: Block, data: bytes, at: int) -> int:
        """Take the message of a call if it follows at once; return where it ends, else 0."""
        messages, credit = block.kind.messages, 0
        expected = messages.get(data[at : at + 5])
        if expected is None and data.startswith(_UPDATE + stream, at):
            at += _UPDATE_BYTES
            # Less than 256: `OpenCall.send_credit` is a key of states that calls share.
            credit = int.from_bytes(data[at - 4 : at], "big")
            expected = messages.get(data[at : at + 5]) if 0 < credit < 256 else None
        if expected is None:
            return 0
        (prefix, size), token = expected
        begin = at + frames.FRAME_BYTES + len(prefix)
        end = begin + size
        if end > len(data) or not data.startswith(stream + prefix, at + 5):
            return 0
        kind, values = block.kind, {name: [value] for name, value in block.changing}
        timeout, is_one = values.get(b"grpc-timeout"), len(values) == len(block.changing)
        if timeout is not None and not (is_one and TIMEOUT.fullmatch(timeout[0])):
            return 0
        self.streams[stream] = kind.states.get(credit) or kind.state(credit)
        last = self.events[-1] if self.events else None
        if last is not None and last[0] == events.CALLS and last[2][:2] == (kind, token):
            last[2][2][stream] = data[begin:end]
            for name, value in values.items():
                last[2][3][name] += value
            self._account(1, len(prefix) + size)
        else:
            self._report(kind, token, {stream: data[begin:end]}, len(prefix) + size, values)
        if block.common is not None and block.common.is_repeated:
            self._add_run(block.common.shape, expected[0])
        return end

    # Calls that repeat others

    def expect(self, block: Block, layout: Layout, token: Any, *, calls: bool = True) -> None:
        """Recognise messages of a layout on streams that begin with a block.

        Args:
            block: as an event brought it.
            layout: a message's first bytes and how many follow.
            token: for the application; CALLS and MESSAGES events return it.
            calls: whether a message may be a whole call: then headers are no event either.
        """
        num_bytes, kind = len(layout[0]) + layout[1], block.kind
        if self._has_gone or block.kind.content_length not in (None, num_bytes):
            return
        if len(kind.messages) >= _MAX_MESSAGES:
            kind.messages.clear()
        kind.messages[num_bytes.to_bytes(3, "big") + b"\0\1"] = layout, token
        kind.is_call = calls
        if block.is_repeated or not calls:
            # A pattern takes milliseconds, and is for bytes that come often.
            self._add_run(((len(block.raw), 0, b""),), layout)

    def _add_run(self, shape: Shape, layout: Layout) -> None:
        """Look for calls with header blocks of a shape, and messages of a layout."""
        headers = _length(shape).to_bytes(3, "big") + b"\1"
        data = (len(layout[0]) + layout[1]).to_bytes(3, "big") + b"\0"
        run = self._runs.get(headers)
        # The more values may change, the more blocks it finds.
        if run is None or data not in self._runs or len(run.shape) < len(shape):
            if len(self._runs) >= _MAX_PATTERNS:
                self._runs.clear()
            self._runs[headers] = self._runs[data] = _run(shape, layout)

    def _scan(self, data: bytes, at: int) -> tuple[int, int]:
        """Take the calls that begin at `at`, where a frame begins, as long as they are in order.

        Args:
            data: the bytes that were read.
            at: where to begin.

        Returns:
            Where the first frame begins that was not recognised, and up to where no other one is:
            a run is looked at once, however little of it is taken.
        """
        while (run := self._runs.get(data[at : at + 4])) is not None:
            match = run.pattern.match(data, at)
            if match is None:
                break
            end, kind = match.end(), match.lastgroup or ""
            cut = run.cuts[kind]
            if end - at == cut.size:  # most runs, where one call comes at a time
                rows = [cut.unpack_from(data, at)]
            else:
                rows = [*cut.iter_unpack(memoryview(data)[at:end])]
            if kind == "data":
                number = self._repeat_data(run, data[at + 4], rows)
            else:
                begin = at + 9
                if block_bytes := run.block_bytes:
                    block = self.reader.blocks.get(data[begin : begin + block_bytes])
                else:
                    block = self.reader.find(data, begin, run.shape)
                # Of streams without their message it is not known: `Block.state`.
                credit = 0 if kind == "calls" else match["more"][0] if kind == "updated" else -1
                number = self._repeat_headers(run, block, rows, credit)
            at += number * cut.size
            if at < end or end == len(data):
                return at, end
        return at, at

    def _repeat_headers(self, run: _Run, block: Block | None, rows: _Rows, credit: int) -> int:
        """Take headers of new streams, perhaps with their messages; return how many."""
        if block is None or not (kind := block.kind).is_call:
            return 0
        found = kind.messages.get(run.first)
        if found is None or found[0] != run.layout:
            return 0
        # All share one state: nothing differs between streams of which equal bytes have come.
        streams, last = self.streams, self.last_stream
        room = self.limits.max_streams - len(streams)
        if len(rows) > room:
            rows = rows[: max(0, room)]
        state = block.states.get(credit) or block.state(credit)
        number = 0
        for row in rows:
            stream = row[0]
            if stream <= last:  # trailers, or an error: the connection's other way decides
                break
            streams[stream] = state
            last = stream
            number += 1
        self.last_stream = last
        if number and credit >= 0:
            if number < len(rows):
                rows = rows[:number]
            values = _NO_VALUES
            if block.names:
                columns = [*zip(*rows, strict=True)]
                rows = [*zip(columns[0], columns[-1], strict=True)]
                values = dict(zip(block.names, columns[1:-1], strict=True))
            self.events.append((events.CALLS, b"", (block, found[1], dict(rows), values), True))
            self._account(number, run.num_bytes)
        return number

    def _repeat_data(self, run: _Run, flags: int, rows: _Rows) -> int:
        """Take messages of streams that are open; return how many."""
        at = 0
        while at < len(rows):
            state: Any = self.streams.get(rows[at][0])
            take: Any = self._end_calls if state.__class__ is OpenCall else self._take_messages
            taken = take(run, flags, rows, at, state)
            if not taken:
                break
            at += taken
        return at

    def _end_calls(self, run: _Run, flags: int, rows: _Rows, at: int, state: OpenCall) -> int:
        """Take, from `at` on, messages of calls whose headers were recognised; return how many."""
        streams, block = self.streams, state.block
        found = block.kind.messages.get(run.first)
        if state.ended or flags != frames.END_STREAM or found is None or found[0] != run.layout:
            return 0
        end, answered = at, block.state(0)
        while (
            end < len(rows) and streams.get(rows[end][0]) is state
        ):  # equal blocks, no message yet
            streams[rows[end][0]] = answered
            end += 1
        self._report(block, found[1], dict(rows[at:end]), run.num_bytes)
        return end - at

    def _take_messages(
        self, run: _Run, flags: int, rows: _Rows, at: int, state: Stream | None
    ) -> int:
        """Take, from `at` on, messages of one stream; return how many."""
        if state is None or state.ended or state.content_left is not None or state.block is None:
            return 0
        found, num_bytes = state.block.kind.messages.get(run.first), run.num_bytes
        if found is None or found[0] != run.layout:
            return 0
        first, is_end, window = rows[at][0], flags == frames.END_STREAM, state.receive_window
        messages = []
        while at < len(rows) and rows[at][0] == first and window >= num_bytes and not state.ended:
            window -= num_bytes
            state.ended = is_end
            messages.append(rows[at][1])
            at += 1
        state.receive_window = window
        if messages:
            self.events.append((events.MESSAGES, first, (*found, messages), is_end))
            self._account(len(messages), num_bytes)
        return len(messages)

    def _report(
        self, block: Block, token: Any, calls: dict[bytes, bytes], num_bytes: int,
        values: Mapping[bytes, Sequence[bytes]] = _NO_VALUES,
    ) -> None:  # fmt: skip
        """Report calls that have come whole, each with this number of data bytes."""
        self.events.append((events.CALLS, b"", (block, token, calls, values), True))
        self._account(len(calls), num_bytes)

    def _account(self, number: int, num_bytes: int) -> None:
        """Take messages that were recognised off the connection's window and limits."""
        self._small_frames.left += self.limits.small_frames_per_request * number
        self._receive_window -= num_bytes * number
        if self._receive_window < self.limits.connection_window_bytes // 2:
            self._use_window(0)


def _head(kind: int, flags: int, length: int) -> bytes:
    """Write a frame's header up to its stream."""
    return word(length << 8 | kind) + bytes((flags,))
