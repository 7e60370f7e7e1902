"""The server's side of a connection: requests in, responses out."""

from collections.abc import Iterable, Sequence

from serving.http2 import events
from serving.http2.connection import Connection
from serving.http2.frames import (
    DATA,
    DEFAULT_FRAME,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES,
    HEADER_TABLE_SIZE,
    HEADERS,
    MAX_WINDOW,
    PREFACE,
    RST_STREAM,
    WINDOW_UPDATE,
    ErrorCode,
    Http2Error,
    frame,
    word,
)
from serving.http2.headers import Block, OpenCall
from serving.http2.hpack.encoder import encode_literally
from serving.http2.hpack.table import Fields
from serving.http2.limits import Limits
from serving.http2.outgoing import Stream

_UPDATE = bytes((0, 0, 4, WINDOW_UPDATE, 0))
_UPDATE_BYTES = FRAME_BYTES + 4
_MAX_PARTS = 64
"""Lengths of messages whose responses are prepared."""


class NotHttp2(Http2Error):
    """The peer speaks something else."""


class ServerConnection(Connection):
    """A server's connection."""

    def __init__(self, limits: Limits, response: Fields, trailers: Fields) -> None:
        """Begin; our settings are ready to be sent.

        Args:
            limits: the peer's limits.
            response: the fields that begin every response, but refusals.
            trailers: the fields that end those that went well.
        """
        super().__init__(limits, is_server=True)
        self._response, self._trailers = response, trailers
        self._preface = PREFACE
        self._parts: dict[int, tuple[bytes, bytes, bytes, bytes]] = {}
        """By length of a message: the bytes between stream numbers in a whole response."""

    def _take_preface(self, data: bytes) -> int:
        part = data[: len(self._preface)]
        if not self._preface.startswith(part):
            raise NotHttp2(ErrorCode.PROTOCOL_ERROR, "not HTTP/2")
        self._preface = self._preface[len(part) :]
        return len(part)

    def announce_end(self) -> None:
        """Ask the peer to open no more streams; those already on the way are still accepted."""
        self._go_away(word(MAX_WINDOW), ErrorCode.NO_ERROR)

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
            if parts is not None and state.ended and self._send_window >= size <= window:
                del open_streams[stream]
                self._send_window -= size
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
        head = _head(HEADERS, END_HEADERS | (0 if data else END_STREAM), len(block))
        for stream in streams:
            state = self.streams.get(stream)
            if state is None:
                continue
            if self.encoder.resized:
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
        if size > DEFAULT_FRAME:
            return
        response = self.encoder.repeated(self._response)
        trailers = self.encoder.repeated(self._trailers)
        if response is None or trailers is None:  # one that comes later would move the other
            response, trailers = map(encode_literally, (self._response, self._trailers))
        if len(self._parts) >= _MAX_PARTS:
            self._parts.clear()
        self._parts[size] = (
            _head(HEADERS, END_HEADERS, len(response)),
            response + _head(DATA, 0, size),
            _head(HEADERS, END_HEADERS | END_STREAM, len(trailers)),
            trailers,
        )

    def _take_setting(self, name: int, value: int) -> None:
        super()._take_setting(name, value)
        if name == HEADER_TABLE_SIZE:
            self._parts.clear()

    def _finish(self, stream: bytes, state: Stream) -> None:
        state.finished = True
        del self.streams[stream]
        if not state.ended:
            self._stop(stream)

    def _stop(self, stream: bytes) -> None:
        """Have a caller stop sending, now that it has its response (RFC 9113, section 8.1)."""
        self._note_reset(stream)
        self._ready.append(frame(RST_STREAM, 0, stream, word(ErrorCode.NO_ERROR)))

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
        kind, ended = block.kind, flags & END_STREAM != 0
        self.last_stream = stream
        if self._has_gone:
            self._note_reset(stream)
        elif kind.is_malformed or (ended and kind.content_length):
            self._fail(stream, ErrorCode.PROTOCOL_ERROR)
        elif len(self.streams) >= limits.max_streams:
            self._note_reset(stream)
            self._ready.append(frame(RST_STREAM, 0, stream, word(ErrorCode.REFUSED_STREAM)))
        elif (
            kind.messages
            and not (ended or block.is_repeated)
            and (end := self._take_message(stream, block, data, at))
        ):
            return end
        else:
            state = self.streams[stream] = Stream(block, limits.stream_window_bytes)
            if kind.content_length is not None:
                state.content_left = kind.content_length
            if ended:
                state.ended = True
            self.events.append((events.HEADERS, stream, block, ended))
        self._small_frames.left += limits.small_frames_per_request
        return None

    def _take_message(self, stream: bytes, block: Block, data: bytes, at: int) -> int:
        """Take the message of a call if it follows at once; return where it ends, else 0."""
        messages = block.kind.messages
        expected = messages.get(data[at : at + 5])
        if expected is None:
            if self._first_window < DEFAULT_FRAME or not data.startswith(_UPDATE + stream, at):
                return 0
            at += _UPDATE_BYTES  # an answer needs no update of less than 256, see `expect`
            expected = messages.get(data[at : at + 5])
            if expected is None or not 0 < int.from_bytes(data[at - 4 : at], "big") < 256:
                return 0
        (prefix, size), token = expected
        begin = at + FRAME_BYTES + len(prefix)
        end = begin + size
        if end > len(data) or not data.startswith(stream + prefix, at + 5):
            return 0
        self.streams[stream] = OpenCall(block, ended=True)
        self.events.append((events.CALLS, b"", (block, token, {stream: data[begin:end]}), True))
        self.num_recognised += 1
        self.recognised_bytes += len(prefix) + size
        return end


def _head(kind: int, flags: int, length: int) -> bytes:
    """Write a frame's header up to its stream."""
    return word(length << 8 | kind) + bytes((flags,))
