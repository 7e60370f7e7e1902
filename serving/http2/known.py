"""Recognises calls that repeat others byte for byte, a run of frames at a time.

Callers repeat their header blocks, and a block that changes no table means the same each time. So
do the first bytes of their messages. One compiled pattern finds how far a run of such frames goes,
and `struct` cuts it into stream numbers and messages: both in C, so that a call costs well under a
microsecond here. Clients send the headers and the data of a call together (grpcio, with an update
of the stream's window between them), or first the headers of all calls and then their data
(nghttp2).
"""

import re
from functools import lru_cache
from struct import Struct
from typing import Any, NamedTuple, Protocol

from serving.http2.events import CALLS, MESSAGES, Event
from serving.http2.frames import END_STREAM
from serving.http2.headers import Block, HeaderReader, Layout, OpenCall
from serving.http2.limits import Limits
from serving.http2.outgoing import Stream

_MAX_PATTERNS = 16
"""First bytes of frames that are looked for on a connection."""
_STREAM = b"[\x00-\x7f]..[" + b"".join(b"\\x%02x" % byte for byte in range(1, 256, 2)) + b"]"
_Row = tuple[bytes, bytes]
"""A stream, and a message."""


class _Run(NamedTuple):
    """How frames of one kind are found, and cut into their parts."""

    pattern: re.Pattern[bytes]
    """Its last group is the kind of run, a name in `cuts`."""
    cuts: dict[str, Struct]
    block_bytes: int
    """Of a header block."""
    num_bytes: int
    """Of a DATA frame's payload."""
    layout: Layout


@lru_cache(maxsize=256)  # compiling one takes some milliseconds
def _run(block_bytes: int, layout: Layout) -> _Run:
    """Describe the frames of calls with a header block of a length and messages of a layout.

    Only the first frames of a run are matched in full: the next ones have the same block, flags.
    """
    prefix, size = layout
    num_bytes = len(prefix) + size
    headers = re.escape(block_bytes.to_bytes(3, "big")) + rb"\x01\x04"
    data = re.escape(num_bytes.to_bytes(3, "big")) + rb"\x00"
    message = re.escape(prefix) + b".{%d}" % size
    block = b".{%d}" % block_bytes

    def call(kind: bytes, which: bytes, block: bytes) -> bytes:
        """Match HEADERS and DATA of a call."""
        same = b"(?P=%b_%b)" % (kind, which)
        # Less than 256 bytes more for an answer, which can do without where the first window is
        # large. Only there calls are recognised.
        update = rb"\x00\x00\x04\x08\x00%b\x00\x00\x00[^\x00]" % same
        between = update if kind == b"updated" else b""
        start = b"(?P<%b_%b>%b)" % (kind, which, _STREAM) + block
        return headers + start + between + data + rb"\x01" + same + message

    def calls(kind: bytes) -> bytes:
        """Match a run of them."""
        first = call(kind, b"first", b"(?P<%b_block>%b)" % (kind, block))
        return first + b"(?:" + call(kind, b"next", b"(?P=%b_block)" % kind) + b")*"

    runs = {
        "updated": calls(b"updated"),
        "calls": calls(b"calls"),
        "headers": headers + _STREAM + b"(?P<block>" + block + b")"
        b"(?:" + headers + _STREAM + b"(?P=block))*",
        "data": data + rb"(?P<flags>[\x00\x01])" + _STREAM + message
        + b"(?:" + data + b"(?P=flags)" + _STREAM + message + b")*",
    }  # fmt: skip
    cut_headers, cut_data = f"5x4s{block_bytes}x", f"{len(prefix)}x{size}s"
    cuts = {
        "updated": Struct(f"{cut_headers}13x9x{cut_data}"),
        "calls": Struct(f"{cut_headers}9x{cut_data}"),
        "headers": Struct(cut_headers),
        "data": Struct(f"5x4s{cut_data}"),
    }
    pattern = b"|".join(run + b"(?P<%b>)" % kind.encode() for kind, run in runs.items())
    return _Run(re.compile(pattern, re.DOTALL), cuts, block_bytes, num_bytes, layout)


class Receiver(Protocol):
    """The part of a connection that recognised calls change."""

    limits: Limits
    streams: dict[bytes, Any]
    reader: HeaderReader
    last_stream: bytes
    events: list[Event]
    num_recognised: int
    """Messages that were recognised in this read."""
    recognised_bytes: int
    """The sum of their frames' payloads."""


class Recogniser:
    """The calls of one connection, by the length and kind that a frame begins with."""

    def __init__(self) -> None:
        """Start with none."""
        self.runs: dict[bytes, _Run] = {}

    def expect(self, block: Block, layout: Layout) -> None:
        """Look for calls with a block and messages of a layout from now on."""
        data = (len(layout[0]) + layout[1]).to_bytes(3, "big") + b"\0"
        headers = len(block.raw).to_bytes(3, "big") + b"\1"
        if headers not in self.runs or data not in self.runs:
            if len(self.runs) >= _MAX_PATTERNS:
                self.runs.clear()
            self.runs[headers] = self.runs[data] = _run(len(block.raw), layout)

    def forget(self) -> None:
        """Recognise nothing until `expect` is called again."""
        self.runs.clear()

    def scan(self, connection: Receiver, data: bytes, at: int) -> tuple[int, int]:
        """Take the calls that begin at `at`, where a frame begins, as long as they are in order.

        Args:
            connection: whose peer sent them; its streams and its events are changed.
            data: the bytes that were read.
            at: where to begin.

        Returns:
            Where the first frame begins that was not recognised, and up to where no other one is:
            a run is looked at once, however little of it is taken.
        """
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
                number = _take_data(connection, run, data[at + 4], rows)
            else:
                block = connection.reader.blocks.get(data[at + 9 : at + 9 + run.block_bytes])
                number = _take_headers(connection, run, block, rows)
            at += number * cut.size
            if at < end:
                return at, end
        return at, at


def _take_headers(
    connection: Receiver, run: _Run, block: Block | None, rows: list[tuple[bytes, ...]]
) -> int:
    """Take headers of new streams, perhaps with their messages; return how many."""
    if block is None or block.opened is None or run.layout not in block.messages:
        return 0
    streams, last = connection.streams, connection.last_stream
    room = connection.limits.max_streams - len(streams)
    if len(rows) > room:
        rows = rows[: max(0, room)]
    has_messages = bool(rows) and len(rows[0]) > 1
    state = block.answered if has_messages else block.opened
    number = 0
    for row in rows:
        stream = row[0]
        if stream <= last:
            break
        streams[stream] = state
        last = stream
        number += 1
    connection.last_stream = last
    if has_messages and number:
        _report(connection, run, block, dict(rows[:number]))  # type: ignore[arg-type]
    return number


def _take_data(connection: Receiver, run: _Run, flags: int, rows: list[_Row]) -> int:
    """Take messages of streams that are open; return how many."""
    at = 0
    while at < len(rows):
        state: Any = connection.streams.get(rows[at][0])
        take: Any = _end_calls if state.__class__ is OpenCall else _take_messages
        taken = take(connection, run, flags, rows, at, state)
        if not taken:
            break
        at += taken
    return at


def _end_calls(
    connection: Receiver, run: _Run, flags: int, rows: list[_Row], at: int, state: OpenCall
) -> int:
    """Take, from `at` on, the messages of calls whose headers were recognised; return how many."""
    streams, block = connection.streams, state.block
    if state.ended or flags != END_STREAM or run.layout not in block.messages:
        return 0
    end, answered = at, block.answered
    while end < len(rows) and streams.get(rows[end][0]) is state:
        streams[rows[end][0]] = answered
        end += 1
    _report(connection, run, block, dict(rows[at:end]))
    return end - at


def _take_messages(
    connection: Receiver, run: _Run, flags: int, rows: list[_Row], at: int, state: Stream | None
) -> int:
    """Take, from `at` on, messages of one stream; return how many."""
    if state is None or state.ended or state.content_left is not None or state.block is None:
        return 0
    layouts, window = state.block.messages, state.receive_window
    if run.layout not in layouts:
        return 0
    first, is_end, messages = rows[at][0], flags == END_STREAM, []
    while at < len(rows) and rows[at][0] == first and window >= run.num_bytes and not state.ended:
        window -= run.num_bytes
        state.ended = is_end
        messages.append(rows[at][1])
        at += 1
    state.receive_window = window
    if messages:
        value = run.layout, layouts[run.layout], messages
        connection.events.append((MESSAGES, first, value, is_end))
        connection.num_recognised += len(messages)
        connection.recognised_bytes += len(messages) * run.num_bytes
    return len(messages)


def _report(connection: Receiver, run: _Run, block: Block, calls: dict[bytes, bytes]) -> None:
    """Report calls that have come whole."""
    connection.events.append((CALLS, b"", (block, block.messages[run.layout], calls), True))
    connection.num_recognised += len(calls)
    connection.recognised_bytes += len(calls) * run.num_bytes
