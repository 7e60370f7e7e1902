"""Recognises calls that repeat others byte for byte, at the speed of a compiled pattern.

Callers repeat their header blocks, and a block that changes no table means the same each time. So
do the first bytes of their messages. Clients send the headers and the data of a call together
(grpcio, with an update of the stream's window between them), or first the headers of all calls and
then their data (nghttp2).
"""

import re
from functools import lru_cache
from typing import Any, Protocol

from serving.http2.events import CALLS, MESSAGE, Event
from serving.http2.headers import Block, HeaderReader, Layout, OpenCall
from serving.http2.limits import Limits
from serving.http2.output import Stream

_MAX_PATTERNS = 16
"""First bytes of frames that are looked for on a connection."""
_ODD = b"".join(b"\\x%02x" % byte for byte in range(1, 256, 2))
_STREAM = rb"([\x00-\x7f]..[" + _ODD + rb"])"
_SMALL_UPDATE = rb"\x00\x00\x04\x08\x00\1\x00\x00\x00[^\x00]"
"""An update of the same stream's window by less than 256 bytes; the answer can do without it where
the first window is large, and only there calls are recognised."""

_MORE = b"\0"
"""The flags of a frame that does not end its stream."""


@lru_cache(maxsize=256)  # compiling one takes a millisecond
def _pattern(block_bytes: int, layout: Layout) -> re.Pattern[bytes]:
    """Match HEADERS with a block of a length, or DATA of a layout, or both of one stream.

    Groups: stream, block, message; flags, stream, message.
    """
    prefix, size = layout
    length = re.escape((len(prefix) + size).to_bytes(3, "big"))
    message = re.escape(prefix) + b"(.{%d})" % size
    headers = re.escape(block_bytes.to_bytes(3, "big")) + rb"\x01\x04" + _STREAM
    return re.compile(
        headers + b"(.{%d})" % block_bytes
        + b"(?:" + _SMALL_UPDATE + b")?"
        + b"(?:" + length + rb"\x00\x01\1" + message + b")?"
        + b"|" + length + rb"\x00([\x00\x01])" + _STREAM + message,
        re.DOTALL,
    )  # fmt: skip


_NO_BLOCK = Block(b"", (), is_malformed=True)


class Receiver(Protocol):
    """The part of a connection that recognised calls change."""

    limits: Limits
    streams: dict[bytes, Any]
    reader: HeaderReader
    last_stream: bytes
    events: list[Event]

    def take_recognised(self, num_bytes: int) -> None:
        """Account for messages that were recognised."""


class Recogniser:
    """The patterns of one connection's calls, by the length and kind that a frame begins with."""

    def __init__(self) -> None:
        """Start with none."""
        self.patterns: dict[bytes, tuple[re.Pattern[bytes], Layout]] = {}

    def expect(self, block: Block, layout: Layout) -> None:
        """Look for calls with a block and messages of a layout from now on."""
        data = (len(layout[0]) + layout[1]).to_bytes(3, "big") + b"\0"
        headers = len(block.raw).to_bytes(3, "big") + b"\1"
        if headers not in self.patterns or data not in self.patterns:
            if len(self.patterns) >= _MAX_PATTERNS:
                self.patterns.clear()
            pattern = _pattern(len(block.raw), layout), layout
            self.patterns[headers] = self.patterns[data] = pattern

    def forget(self) -> None:
        """Recognise nothing until `expect` is called again."""
        self.patterns.clear()

    def scan(self, connection: Receiver, data: bytes, at: int) -> int:
        """Take the calls that begin at `at`, where a frame begins, as long as they are in order.

        Args:
            connection: whose peer sent them; its streams and its events are changed.
            data: what was read.
            at: where to begin.

        Returns:
            Where the first frame begins that was not recognised.
        """
        streams, blocks = connection.streams, connection.reader.blocks
        last, begin, num_bytes = connection.last_stream, -1, 0
        while at != begin and (found := self.patterns.get(data[at : at + 4])) is not None:
            pattern, layout = found
            begin, message_bytes = at, len(layout[0]) + layout[1]
            room = connection.limits.max_streams - len(streams)
            block = _NO_BLOCK
            known = b""
            calls: list[tuple[bytes, bytes]] = []
            for match in iter(pattern.scanner(data, at).match, None):  # type: ignore[attr-defined]
                stream, raw, message, flags, data_stream, data_message = match.groups()
                if stream is None:
                    state = streams.get(data_stream)
                    if state.__class__ is not OpenCall:
                        if not _take_message(connection, state, layout, match.groups()[3:]):
                            break
                        num_bytes += message_bytes
                        at = match.end()
                        continue
                    other = state.block
                    if state.ended or flags == _MORE or layout not in other.messages:
                        break
                    stream, message = data_stream, data_message
                elif stream <= last or room <= 0:
                    break
                else:
                    other = block if raw == known else blocks.get(raw, _NO_BLOCK)
                    if layout not in other.messages or other.opened is None:
                        break
                    last = stream
                    room -= 1
                if other is not block:
                    block, known, calls = other, other.raw, []
                    event = CALLS, b"", (block, block.messages[layout], calls), True
                    connection.events.append(event)
                if message is None:
                    streams[stream] = block.opened
                else:
                    streams[stream] = block.answered
                    calls.append((stream, message))
                    num_bytes += message_bytes
                at = match.end()
        connection.last_stream = last
        if num_bytes:
            connection.take_recognised(num_bytes)
        return at


def _take_message(
    connection: Receiver, state: Stream | None, layout: Layout, groups: tuple[bytes, ...]
) -> bool:
    """Take a message of a stream of messages; False if it needs a closer look."""
    flags, stream, message = groups
    if state is None or state.ended or state.content_left is not None or state.block is None:
        return False
    messages, num_bytes = state.block.messages, len(layout[0]) + layout[1]
    if layout not in messages or state.receive_window < num_bytes:
        return False
    state.receive_window -= num_bytes
    state.ended = flags != _MORE
    event = MESSAGE, stream, (layout, messages[layout], message), state.ended
    connection.events.append(event)
    return True
