"""The server's side of a connection: requests in, responses out."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Self

from serving.http2 import frames
from serving.http2.connection import CallRecogniser, Connection
from serving.http2.events import Event, HeadersReceived, Layout
from serving.http2.frames import DATA, HEADERS, ErrorCode, Http2Error, frame, word
from serving.http2.headers import HeaderReader, SharedHeaders
from serving.http2.hpack import Encoder, Fields, encode_literally
from serving.http2.limits import Limits
from serving.http2.pieces import Pieces
from serving.http2.streams import PEER_ENDS, WE_END, Stream

_MAX_TEMPLATES = 64
"""Lengths of messages whose responses are prepared."""
_NO_TABLE = frames.HEADER_TABLE_SIZE.to_bytes(2, "big") + bytes(4)
"""The setting that leaves the peer no table for its header blocks."""


class ServerConnection(Connection):
    """A server's connection."""

    def __init__(
        self,
        limits: Limits,
        response: Fields,
        trailers: Fields,
        not_http2: bytes = b"",
        counting: frozenset[bytes] = frozenset(),
    ) -> None:
        """Begin; our settings are ready to be sent.

        Args:
            limits: the peer's limits.
            response: the fields that begin every response, but refusals.
            trailers: the fields that end those that went well.
            not_http2: all that is sent to a peer that speaks something else.
            counting: names of fields whose values the application reads once for all requests that
                share them, beside those that HTTP reads itself.
        """
        reader = HeaderReader(limits, of_requests=True, counting=counting)
        super().__init__(limits, reader, Encoder())
        self._response, self._trailers, self._not_http2 = response, trailers, not_http2
        self._preface = frames.PREFACE
        self._templates: dict[int, tuple[bytes, bytes, bytes, bytes]] = {}
        """By length of a message: the bytes between stream numbers in a whole response."""

    def recognise(self, make: Callable[[Connection], CallRecogniser]) -> Self:
        """Recognise calls that repeat others from now on, where `expect` says so.

        Args:
            make: makes the recogniser of a connection, such as `recogniser.recognise(varying)`.

        Returns:
            This connection.
        """
        self.recogniser = self.reader.recogniser = make(self)
        return self

    def expect(
        self, block: SharedHeaders, layout: Layout, token: Any, *, calls: bool = True
    ) -> None:
        """Recognise messages of a layout on streams that begin with a block; see the recogniser."""
        if self.recogniser is not None and not self._has_gone:
            self.recogniser.expect(block, layout, token, calls=calls)

    def receive(self, data: bytes, now_s: float) -> list[Event]:
        """Process bytes, as `Connection` does: recognised calls go no further than here.

        Raises:
            Http2Error: the peer broke the protocol; the reason is ready to be sent to it.
        """
        recogniser = self.recogniser
        # Only where a frame begins at the first byte: the pattern knows nothing of halves.
        is_halfway = self._rest or self._partial or self._skip or self._block
        if is_halfway or recogniser is None or not recogniser.runs:
            return super().receive(data, now_s)
        self._now_s = now_s
        try:
            at, looked_at = recogniser.scan(data, 0)
            if at < len(data):
                self._take_frames(data, at, looked_at)
        except Http2Error as err:
            self.go_away(err.code)
            raise
        finally:
            events, self.events = self.events, []
        return events

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

    def answer(self, streams: Sequence[bytes], messages: Sequence[bytes | Pieces]) -> None:
        """Send whole responses; nothing happens on streams whose callers have left.

        Args:
            streams: whose responses have not begun.
            messages: the data of each.
        """
        open_streams, window = self.streams, self._first_window
        ready: list[Any] = self._ready  # bytes: no length of `Pieces` is prepared
        for stream, message in zip(streams, messages, strict=True):
            state, size = open_streams.get(stream), len(message)
            template = self._templates.get(size)
            if state is None:
                continue
            # Whole and at once: the windows have room, and nothing of the stream is left to read.
            if template is not None and state.ended and self.send_window >= size <= window:
                del open_streams[stream]
                self.send_window -= size
                headers, data, trailers, end = template
                ready += (headers, stream, data, stream, message, trailers, stream, end)
                continue
            self.respond(stream)
            self.send(stream, message)
            self.end(stream)
            if template is None:
                self._learn(size)

    def respond(self, stream: bytes, fields: Fields = ()) -> None:
        """Begin a response; with the usual fields if there are none."""
        if stream in self.streams:
            block = encode_literally(fields) if fields else self.encoder.encode(self._response)
            self._send_block(stream, block, end=False)

    def send(self, stream: bytes, data: bytes | Pieces) -> None:
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
        header = _frame_header(
            HEADERS, frames.END_HEADERS | (0 if data else frames.END_STREAM), len(block)
        )
        for stream in streams:
            state = self.streams.get(stream)
            if state is None:
                continue
            if self.encoder.resized:  # the next block has to begin with the table's new size
                self._send_block(stream, block, end=not data)
            else:
                self._ready += (header, stream, block)
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
        if len(self._templates) >= _MAX_TEMPLATES:
            self._templates.clear()  # all at once: to know the oldest costs more than it saves
        self._templates[size] = (
            _frame_header(HEADERS, frames.END_HEADERS, len(response)),
            response + _frame_header(DATA, 0, size),
            _frame_header(HEADERS, frames.END_HEADERS | frames.END_STREAM, len(trailers)),
            trailers,
        )

    def _take_setting(self, name: int, value: int) -> None:
        super()._take_setting(name, value)
        if name == frames.HEADER_TABLE_SIZE:
            self._templates.clear()

    def _finish(self, stream: bytes, state: Stream) -> None:
        state.move(WE_END)
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
        block, limits, recogniser = self.reader.read(raw), self.limits, self.recogniser
        if self.reader.num_vain and recogniser and recogniser.wants_no_table(stream, block):
            self._ready.append(frame(frames.SETTINGS, 0, frames.CONNECTION, _NO_TABLE))
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
            recogniser
            and block.kind.is_call
            and not (ended or block.is_repeated)
            and (end := recogniser.take_message(stream, block, data, at))
        ):
            return end
        else:
            state = self.streams[stream] = Stream(block, limits.stream_window_bytes)
            state.content_left = block.kind.content_length
            if ended:
                state.move(PEER_ENDS)
            self.events.append(HeadersReceived(stream, block, ended))
        self._small_frames.left += limits.small_frames_per_request
        return None


def _frame_header(kind: int, flags: int, length: int) -> bytes:
    """Write a frame's header up to its stream."""
    return word(length << 8 | kind) + bytes((flags,))
