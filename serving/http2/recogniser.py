"""Recognises calls that repeat others byte for byte, a run of frames at a time.

Callers repeat their header blocks, and a block that changes no table means the same each time. They
also repeat the first bytes of their messages. One compiled pattern finds how far a run of such
frames goes, and `struct` cuts it into stream numbers and messages: both in C, so that a call costs
well under a microsecond here. Clients send the headers and the data of a call together (grpcio,
with an update of the stream's window between them), or first the headers of all calls and then
their data (nghttp2). Blocks that differ in some values, such as deadlines, are cut by the same
pattern: README.md explains how. A server without a recogniser answers the same, frame by frame.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import chain
from struct import Struct
from typing import Any, NamedTuple, TypeAlias

from serving.http2 import frames
from serving.http2.connection import Connection
from serving.http2.events import CallsReceived, Layout, MessagesReceived
from serving.http2.headers import MAX_KEPT_BYTES, Block, Kind, Literal, SharedHeaders, is_valid
from serving.http2.hpack import Field, Fields
from serving.http2.streams import PEER_ENDS, OpenCall, Stream

_UPDATE = bytes((0, 0, 4, frames.WINDOW_UPDATE, 0))
_UPDATE_BYTES = frames.FRAME_BYTES + 4
_MAX_LAYOUTS = 16
"""Layouts of messages that are recognised on streams of a kind."""
_MAX_TEMPLATES = 32
_MAX_LEFT_OUT = 8
"""Values that are left out of a block: each takes 0.1 ms and 6 kB of a run's pattern."""
_MIN_VAIN = 32
"""Blocks that inserted values of one call into our table, before the peer is asked to use none."""
_MAX_PATTERNS = 16
"""First bytes of frames that are looked for on a connection."""
# Four bytes, an odd number below 2^31: a client's streams are odd (RFC 9113, section 5.1.1).
_STREAM = b"[\x00-\x7f]..[" + b"".join(b"\\x%02x" % byte for byte in range(1, 256, 2)) + b"]"
_VISIBLE = rb"[!-~\x80-\xff]"
_NO_VALUES: dict[bytes, list[bytes]] = {}
_NOT_ENDED = -1
"""The key of streams whose message has not come; see `_state_of`."""

Shape: TypeAlias = tuple[tuple[int, int, bytes], ...]
"""Header blocks that differ in some values: the bytes up to one, its length, its pattern; the last
part is without a value."""
_Rows: TypeAlias = list[Any]
"""Tuples of a stream, the values that its header block does not share, and its message, as far as
it has them."""
_Place: TypeAlias = tuple[int, int, bytes]
"""Where a block has a value, and the field's name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Varying:
    """What the application says of the fields whose values change from call to call."""

    patterns: Mapping[bytes, Mapping[int, bytes]] = field(default_factory=dict)
    """Regular expressions of the values of some fields, by their length. Calls with other values
    are read one by one. Values of all other fields may be any visible bytes."""


class Template(SharedHeaders):
    """A header block without the values in which the blocks of its kind differ."""

    def __init__(
        self, fields: Fields, changing: Sequence[Field], kind: Kind, shape: Shape, names: Fields
    ) -> None:
        """Begin a template that one pair of blocks has in common.

        Args:
            fields: those whose values are the same.
            changing: those of `fields` that other blocks of the kind do not share.
            kind: the blocks' kind.
            shape: where the values that differ are.
            names: the fields that have them, in order.
        """
        super().__init__(fields, kind, changing)
        self.shape = shape
        self.names = tuple(name for name, _ in names)
        self.is_kept = True


class _FramePattern(NamedTuple):
    """How frames of one kind are found, and cut into their parts."""

    pattern: re.Pattern[bytes]
    """Its last group is the kind of run, a name in `cuts`."""
    cuts: dict[str, Struct]
    shape: Shape
    """That of the header blocks."""
    block_bytes: int
    """Their length, if they differ in no value; else 0."""
    num_bytes: int
    """The length of a DATA frame's payload."""
    first: bytes
    """The first bytes of the frame that ends a call."""
    layout: Layout


def _length(shape: Shape) -> int:
    """Return the bytes of a header block."""
    return sum(number + size for number, size, _ in shape)


@lru_cache(maxsize=256)  # compiling one takes some milliseconds
def _run(shape: Shape, layout: Layout) -> _FramePattern:
    """Describe the frames of calls with header blocks of a shape and messages of a layout.

    Only the first frames of a run are matched in full: the next ones have the same block, but for
    values, and flags. With a block of 9 bytes and messages of `00 00 00 00 0c 0a 0a` and 10 more
    bytes, two calls as grpcio sends them are

        00 00 09 01 04 00 00 00 01  83 86 45 ... c1       HEADERS, END_HEADERS, stream 1, the block
        00 00 04 08 00 00 00 00 01  00 00 00 05           WINDOW_UPDATE of stream 1 by 5
        00 00 11 00 01 00 00 00 01  00 00 00 00 0c 0a 0a  and 10 bytes: DATA, END_STREAM
        00 00 09 01 04 00 00 00 03  83 86 45 ... c1       and so on, on stream 3

    and the alternative `updated` of their pattern is, without escapes,

        00 00 09 01 04 (?P<updated_first>STREAM) (?P<updated_block_0>.{9})
        00 00 04 08 00 (?P=updated_first) 00 00 00 (?P<more>[^0])
        00 00 11 00 01 (?P=updated_first) 00 00 00 00 0c 0a 0a .{10}
        (?: 00 00 09 01 04 (?P<updated_next>STREAM) (?P=updated_block_0) ... )*
    """
    # A frame is three bytes of length, a kind, flags, a stream and the payload: here HEADERS (1)
    # with END_HEADERS (4), DATA (0) with END_STREAM (1) or nothing, WINDOW_UPDATE (8) of 4 bytes.
    prefix, size = layout
    num_bytes = len(prefix) + size
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

    def repeated(first: bytes, following: bytes) -> bytes:
        return first + b"(?:" + following + b")*"

    runs = {
        "updated": repeated(call(b"updated", b"first"), call(b"updated", b"next")),
        "calls": repeated(call(b"calls", b"first"), call(b"calls", b"next")),
        "headers": repeated(
            headers + _STREAM + block(b"headers", b"first"),
            headers + _STREAM + block(b"headers", b"next"),
        ),
        "data": repeated(
            data + rb"(?P<flags>[\x00\x01])" + _STREAM + message,
            data + b"(?P=flags)" + _STREAM + message,
        ),
    }
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
    return _FramePattern(
        pattern=re.compile(pattern, re.DOTALL),
        cuts=cuts,
        shape=shape,
        block_bytes=0 if has_values else shape[0][0],
        num_bytes=num_bytes,
        first=_first_bytes(num_bytes),
        layout=layout,
    )


def _first_bytes(num_bytes: int) -> bytes:
    """Return the first bytes of a DATA frame of a length that ends its stream."""
    return num_bytes.to_bytes(3, "big") + bytes((frames.DATA, frames.END_STREAM))


class Recogniser:
    """The calls of one connection that repeat others."""

    def __init__(self, connection: Connection, varying: Varying) -> None:
        """Recognise nothing yet.

        Args:
            connection: a server's, whose streams, events and windows it updates.
            varying: the values that may change.
        """
        self._connection = connection
        self._varying = varying
        self._keeps_table = connection.limits.header_table_bytes > 0
        self.runs: dict[bytes, _FramePattern] = {}
        """How calls are found, by the first four bytes of a frame."""
        self.templates: dict[tuple[bytes, ...], Template] = {}
        """Templates that mean the same as long as no block changes the table, by the bytes between
        values.

        A value's length stands before it. So blocks with the same bytes between values have the
        same fields but for these values, and are as long.
        """
        self._shapes: dict[int, Shape] = {}
        """Where the blocks of templates have values, by their length."""

    def clear(self) -> None:
        """Recognise nothing until `expect` is called."""
        self.runs.clear()
        self.templates.clear()
        self._shapes.clear()

    # What is recognised

    def expect(self, block: SharedHeaders, layout: Layout, token: Any, *, calls: bool) -> None:
        """Recognise messages of a layout on streams that begin with a block.

        Args:
            block: as an event brought it.
            layout: a message's first bytes and how many follow.
            token: the application's; events return it.
            calls: whether a message may be a whole call: then headers are no event either.
        """
        num_bytes, kind = len(layout[0]) + layout[1], block.kind
        if kind.content_length not in (None, num_bytes):
            return
        if len(kind.messages) >= _MAX_LAYOUTS:
            kind.messages.clear()
        kind.messages[_first_bytes(num_bytes)] = layout, token
        kind.is_call = calls
        if isinstance(block, Block) and block.raw and (block.is_repeated or not calls):
            # A pattern takes milliseconds, and is for bytes that come often.
            self._add_run(((len(block.raw), 0, b""),), layout)

    def _add_run(self, shape: Shape, layout: Layout) -> None:
        """Look for calls with header blocks of a shape, and messages of a layout."""
        headers = _length(shape).to_bytes(3, "big") + bytes((frames.HEADERS,))
        data = (len(layout[0]) + layout[1]).to_bytes(3, "big") + bytes((frames.DATA,))
        run = self.runs.get(headers)
        # The more values may change, the more blocks it finds.
        if run is None or data not in self.runs or len(run.shape) < len(shape):
            if len(self.runs) >= _MAX_PATTERNS:
                self.runs.clear()
            self.runs[headers] = self.runs[data] = _run(shape, layout)

    # Header blocks that are read one by one

    def read(self, raw: bytes) -> Block | None:
        """Read a block by its template, whose values come last among the block's fields."""
        shape = self._shapes.get(len(raw))
        template = self._find(raw, 0, shape) if shape else None
        if template is None:
            return None
        changing, at = list(template.changing), 0
        for name, (number, size, _) in zip(template.names, template.shape, strict=False):
            changed = name, raw[at + number : at + number + size]
            if not is_valid(changed):
                return None
            changing.append(changed)
            at += number + size
        fields = (*template.fields, *changing[len(template.changing) :])
        block = Block(raw, fields, template.kind, changing)
        block.template, template.is_repeated = template, True
        return block

    def learn(self, block: Block, literals: Sequence[Literal]) -> None:
        """Compare a block that was decoded with the last one of its kind."""
        places = [
            (begin, end, block.fields[at][0])
            for at, begin, end in literals
            if begin < end and block.fields[at] in block.changing
        ]
        if not places:
            return
        kind = block.kind
        last, kind.last = kind.last, (block.raw, places)
        if last is not None and last[1] == places and len(last[0]) == len(block.raw):
            block.template = self._template(block, last[0], places)

    def _find(self, data: bytes, at: int, shape: Shape) -> Template | None:
        """Return the template of the blocks of a shape that begin at `at`, if it is known."""
        between: list[bytes] = []
        for number, size, _ in shape:
            between.append(data[at : at + number])
            at += number + size
        template = self.templates.get(tuple(between))
        # A shorter value, and a field behind it, may stand where this shape has a longer one.
        return template if template is not None and template.shape == shape else None

    def _template(self, block: Block, last: bytes, places: list[_Place]) -> Template | None:
        """Return a block without the values in which it differs from the last one of its kind."""
        raw, names = block.raw, [name for name, _ in block.fields]
        changed = []
        for begin, end, name in places:
            if raw[begin:end] != last[begin:end] and names.count(name) == 1:
                pattern = self._pattern(name, end - begin)
                if pattern:
                    changed.append((begin, end, name, pattern))
        if not 0 < len(changed) <= _MAX_LEFT_OUT:
            return None
        parts: list[tuple[int, int, bytes]] = []
        between: list[bytes] = []
        at = 0
        for begin, end, _, pattern in (*changed, (len(raw), len(raw), b"", b"")):
            between.append(raw[at:begin])
            parts.append((begin - at, end - begin, pattern))
            at = end
        key, shape = tuple(between), tuple(parts)
        template = self.templates.get(key)
        if template is not None:
            template.is_repeated = True
            return template
        left_out = {name: b"" for _, _, name, _ in changed}
        template = self._new_template(block, shape, tuple(left_out.items()))
        if len(self.templates) >= _MAX_TEMPLATES:
            self.templates.clear()
            self._shapes.clear()
        self.templates[key] = template
        self._shapes[len(raw)] = shape
        return template

    def _new_template(self, block: Block, shape: Shape, left_out: Fields) -> Template:
        names = {name for name, _ in left_out}
        fields = tuple(each for each in block.fields if each[0] not in names)
        changing = tuple(each for each in block.changing if each[0] not in names)
        return Template(fields, changing, block.kind, shape, left_out)

    def _pattern(self, name: bytes, size: int) -> bytes:
        """Return what matches a field's values of a length; empty if they can't be recognised."""
        patterns = self._varying.patterns.get(name)
        return _VISIBLE + b"{%d}" % size if patterns is None else patterns.get(size, b"")

    def wants_no_table(self, stream: bytes, block: Block) -> bool:
        """Return whether the peer should use no table, since every fourth call inserts own values.

        They move the indices of all fields. Without a table blocks are longer, and the same but for
        these values: some 300 bytes instead of 100, and a fourth of the time.
        """
        reader = self._connection.reader
        is_often = 8 * reader.num_vain > int.from_bytes(stream, "big")  # of every second number
        if not self._keeps_table or reader.num_vain < _MIN_VAIN or not is_often:
            return False
        self._keeps_table = False
        # Values in Huffman's code differ in length, and long blocks are not kept.
        num_bytes = len(b"".join(chain.from_iterable(block.fields))) + 4 * len(block.fields)
        is_plain = all(begin < end for _, begin, end in reader.literals)
        return is_plain and num_bytes <= MAX_KEPT_BYTES

    def take_message(self, stream: bytes, block: Block, data: bytes, at: int) -> int:
        """Take the message of a call if it follows its block at once.

        Returns:
            Where the message ends; 0 if none was recognised.
        """
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
        if not self._may_share(block.changing, len(values)):
            return 0
        self._connection.streams[stream] = _state_of(kind, credit)
        self._report_one(kind, token, stream, data[begin:end], values)
        self._connection.account(1, len(prefix) + size)
        template = block.template
        if isinstance(template, Template) and template.is_repeated:
            self._add_run(template.shape, expected[0])
        return end

    def _may_share(self, changing: Sequence[Field], num_names: int) -> bool:
        """Return whether the values of a call can be handed on without its block."""
        for name, value in changing:
            patterns = self._varying.patterns.get(name)
            if patterns is not None:
                pattern = patterns.get(len(value))
                if num_names < len(changing) or not pattern or not re.fullmatch(pattern, value):
                    return False
        return True

    def _report_one(
        self,
        kind: Kind,
        token: Any,
        stream: bytes,
        message: bytes,
        values: dict[bytes, list[bytes]],
    ) -> None:
        """Report a call, with the one before it if they are of one kind."""
        events = self._connection.events
        last = events[-1] if events else None
        if isinstance(last, CallsReceived) and last.shared is kind and last.token is token:
            last.messages[stream] = message
            for name, value in values.items():
                last.values[name].extend(value)
        else:
            events.append(CallsReceived(kind, token, {stream: message}, values))

    # Runs of frames

    def scan(self, data: bytes, at: int) -> tuple[int, int]:
        """Take the calls that begin at `at`, where a frame begins, as long as they are in order.

        Args:
            data: the bytes that were read.
            at: where to begin.

        Returns:
            Where the first frame begins that was not recognised, and up to where no other one is:
            a run is looked at once, however little of it is taken.
        """
        shared: Block | Template | None
        reader = self._connection.reader
        while (run := self.runs.get(data[at : at + 4])) is not None:
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
                number = self._take_data(run, data[at + 4], rows)
            else:
                begin = at + frames.FRAME_BYTES
                if block_bytes := run.block_bytes:
                    shared = reader.blocks.get(data[begin : begin + block_bytes])
                else:
                    shared = self._find(data, begin, run.shape)
                credit = -1  # streams without their message have none yet: `_NOT_ENDED`
                if kind == "calls":
                    credit = 0
                elif kind == "updated":
                    credit = match["more"][0]
                number = self._take_headers(run, shared, rows, credit)
            at += number * cut.size
            if at < end or end == len(data):
                return at, end
        return at, at

    def _take_headers(
        self, run: _FramePattern, shared: Block | Template | None, rows: _Rows, credit: int
    ) -> int:
        """Take headers of new streams, perhaps with their messages; return how many."""
        if shared is None or not (kind := shared.kind).is_call:
            return 0
        found = kind.messages.get(run.first)
        if found is None or found[0] != run.layout:
            return 0
        # All share one state: nothing differs between streams of which equal bytes have come.
        connection = self._connection
        streams, last = connection.streams, connection.last_stream
        room = connection.limits.max_streams - len(streams)
        if len(rows) > room:
            rows = rows[: max(0, room)]
        state = shared.states.get(credit) or _state_of(shared, credit)
        number = 0
        for row in rows:
            stream = row[0]
            if stream <= last:  # trailers, or an error: the connection's other way decides
                break
            streams[stream] = state
            last = stream
            number += 1
        connection.last_stream = last
        if number and credit != _NOT_ENDED:
            if number < len(rows):
                rows = rows[:number]
            values = _NO_VALUES
            if shared.names:
                columns = [*zip(*rows, strict=True)]
                rows = [*zip(columns[0], columns[-1], strict=True)]
                values = {
                    name: [*column]
                    for name, column in zip(shared.names, columns[1:-1], strict=True)
                }
            connection.events.append(CallsReceived(shared, found[1], dict(rows), values))
            connection.account(number, run.num_bytes)
        return number

    def _take_data(self, run: _FramePattern, flags: int, rows: _Rows) -> int:
        """Take messages of streams that are open; return how many."""
        at = 0
        while at < len(rows):
            state: Any = self._connection.streams.get(rows[at][0])
            take: Any = self._end_calls if state.__class__ is OpenCall else self._take_messages
            taken = take(run, flags, rows, at, state)
            if not taken:
                break
            at += taken
        return at

    def _end_calls(
        self, run: _FramePattern, flags: int, rows: _Rows, at: int, state: OpenCall
    ) -> int:
        """Take, from `at` on, messages of calls whose headers were recognised; return how many."""
        streams, shared = self._connection.streams, state.block
        found = shared.kind.messages.get(run.first)
        if state.ended or flags != frames.END_STREAM or found is None or found[0] != run.layout:
            return 0
        end, answered = at, _state_of(shared, 0)
        # Streams of equal blocks share a state until their messages come.
        while end < len(rows) and streams.get(rows[end][0]) is state:
            streams[rows[end][0]] = answered
            end += 1
        calls = CallsReceived(shared, found[1], dict(rows[at:end]), _NO_VALUES)
        self._connection.events.append(calls)
        self._connection.account(end - at, run.num_bytes)
        return end - at

    def _take_messages(
        self, run: _FramePattern, flags: int, rows: _Rows, at: int, state: Stream | None
    ) -> int:
        """Take, from `at` on, messages of one stream; return how many."""
        if state is None or state.ended or state.content_left is not None or state.block is None:
            return 0
        found, num_bytes = state.block.kind.messages.get(run.first), run.num_bytes
        if found is None or found[0] != run.layout:
            return 0
        layout, token = found
        first, is_end, window = rows[at][0], flags == frames.END_STREAM, state.receive_window
        messages: list[bytes] = []
        while at < len(rows) and rows[at][0] == first and window >= num_bytes:
            window -= num_bytes
            messages.append(rows[at][1])
            at += 1
            if is_end:
                state.move(PEER_ENDS)
                break
        state.receive_window = window
        if messages:
            event = MessagesReceived(first, layout, token, messages, is_end)
            self._connection.events.append(event)
            self._connection.account(len(messages), num_bytes)
        return len(messages)


def recognise(varying: Varying) -> Callable[[Connection], Recogniser]:
    """Return what gives a server's connection its recogniser."""
    return lambda connection: Recogniser(connection, varying)


def _state_of(shared: SharedHeaders, key: int) -> OpenCall:
    """Return the state of streams of which only the block has come, and perhaps a message.

    Args:
        shared: the block.
        key: how much more the peer takes on them than on others, less than 256; `_NOT_ENDED` where
            the message has not come.
    """
    state: OpenCall | None = shared.states.get(key)
    if state is None:
        state = OpenCall(shared, ended=key != _NOT_ENDED, send_credit=max(0, key))
        shared.states = {**shared.states, key: state}
    return state
