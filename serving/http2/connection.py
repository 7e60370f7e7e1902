"""One side of a connection: from bytes to events, frame by frame, and header blocks."""

from struct import Struct
from typing import Any

from serving.http2 import events as kinds
from serving.http2.control import Control, is_own_parent
from serving.http2.events import Event
from serving.http2.frames import (
    CONNECTION,
    CONTINUATION,
    DATA,
    DEFAULT_FRAME,
    END_HEADERS,
    END_STREAM,
    FRAME_BYTES,
    HEADERS,
    PADDED,
    PRIORITIZED,
    SETTINGS,
    ErrorCode,
    Http2Error,
    check_header,
)
from serving.http2.headers import Block, HeaderReader, Layout
from serving.http2.known import Recogniser
from serving.http2.limits import Limits

_HEADER = Struct(">IB4s").unpack_from
"""A frame's length and kind, flags, stream."""
_MAX_WAIT_BYTES = 4096
"""DATA frames up to this length are handed on whole."""


class Connection(Control):
    """One side of a connection, without I/O; not safe to share between threads."""

    def __init__(self, limits: Limits, *, is_server: bool, first: bytes = b"") -> None:
        """Begin; the first bytes are ready to be sent.

        Args:
            limits: the peer's limits.
            is_server: which side this is.
            first: the preface that precedes our settings.
        """
        super().__init__(limits, first)
        self._recogniser = Recogniser()
        self.reader = HeaderReader(limits, self._recogniser.forget, of_requests=is_server)
        self.last_stream = CONNECTION
        """The latest stream that the peer has opened."""
        self._preface = b""
        """The part of the peer's preface that has not arrived."""
        self._rest = b""
        """The start of a frame that has not come whole."""
        self._block: tuple[bytes, int, bytearray, int] | None = None
        """A header block to be continued: stream, flags, its bytes, number of frames."""
        self._has_gone = False
        """Whether new streams are refused."""

    def expect(self, block: Block, layout: Layout, token: Any, *, calls: bool = True) -> None:
        """Recognise messages of a layout on streams that begin with a block.

        Args:
            block: as an event brought it.
            layout: a message's first bytes and how many follow.
            token: for the application; CALLS and MESSAGES events return it.
            calls: whether a message may be a whole call: then headers are no event either.
        """
        is_wrong = block.kind.content_length not in (None, len(layout[0]) + layout[1])
        # Where first windows are small, updates of them count, which recognising skips.
        if self._has_gone or is_wrong or self._first_window < DEFAULT_FRAME:
            return
        if calls and not block.is_repeated:
            block.kind.expect(layout, token)
            return
        block.expect(layout, token, calls=calls)
        self._recogniser.expect(block, layout)

    def forget(self) -> None:
        """Decode all header blocks again, and recognise none until `expect` is called."""
        self.reader.clear()
        self._recogniser.forget()

    def _set_first_window(self, size: int) -> None:
        super()._set_first_window(size)
        if size < DEFAULT_FRAME:
            self._recogniser.forget()

    def receive(self, data: bytes, now_s: float) -> list[Event]:
        """Process bytes from the peer.

        Args:
            data: the bytes.
            now_s: the time, on a clock that does not go back; for the rate of resets.

        Raises:
            Http2Error: the peer broke the protocol; the reason is ready to be sent to it.
        """
        self._now_s = now_s
        found: list[Event] = []
        self.events = found
        at = 0
        if self._rest:
            data = self._rest + data
        try:
            if self._preface:
                at = self._take_preface(data)
            if self._partial or self._skip:
                at = self._continue(data)
            size, recogniser, looked_at = len(data), self._recogniser, at
            while size - at >= FRAME_BYTES:
                if recogniser.runs and at >= looked_at and self._block is None:
                    at, looked_at = recogniser.scan(self, data, at)
                    if size - at < FRAME_BYTES:
                        break
                end = self._frame(data, at)
                if not end:
                    break
                at = end
            if self.num_recognised:
                self._account_recognised()
            if self._is_wider:
                self._unblock()
        except Http2Error as err:
            self.go_away(err.code)
            raise
        self._rest = data[at:] if at < size else b""
        return found

    def _take_preface(self, data: bytes) -> int:
        """Take the preface that precedes the peer's frames; return where it ends."""
        raise NotImplementedError

    def go_away(self, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """Take no more streams, and say so, once."""
        if not self._has_gone:
            self._has_gone = True
            self.forget()
            self._go_away(self.last_stream, code)

    def _frame(self, data: bytes, at: int) -> int:
        """Take the frame at `at`; return where it ends, 0 if it is incomplete."""
        first: int
        stream: bytes
        first, flags, stream = _HEADER(data, at)
        kind, length = first & 0xFF, first >> 8
        if stream[0] & 0x80:
            stream = bytes((stream[0] & 0x7F,)) + stream[1:]
        if kind > HEADERS or length > DEFAULT_FRAME or self._block or not self.is_established:
            self._check(kind, length, stream)
        begin, size = at + FRAME_BYTES, len(data)
        end = begin + length
        if end > size:
            if kind <= CONTINUATION and (kind != DATA or length <= _MAX_WAIT_BYTES):
                return 0
            if begin == size:  # the length of padding comes next, perhaps
                return 0
            if kind != DATA:
                self._small()
                self._skip = end - size
                return size
        if kind == DATA:
            if (
                flags > END_STREAM
                or end > size
                or not self._whole_data(stream, data[begin:end], ended=flags == END_STREAM)
            ):
                self._data(stream, flags, data, begin, end)
        elif kind == HEADERS:
            if flags & ~END_STREAM == END_HEADERS:
                return self._take_block(stream, flags, data[begin:end], data, end) or end
            self._headers(stream, flags, data[begin:end])
        elif kind == CONTINUATION:
            self._continuation(stream, flags, data[begin:end])
        elif kind < CONTINUATION:
            self._control(kind, stream, flags, data[begin:end])
        else:
            self._small()
        return min(end, size)

    def _check(self, kind: int, length: int, stream: bytes) -> None:
        """Refuse a frame by its header alone."""
        limits = self.limits
        is_whole = DATA < kind <= CONTINUATION  # others are handed on, or skipped, as they come
        if length > (limits.max_block_bytes if is_whole else limits.max_frame_bytes):
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "a frame that is too long")
        if kind <= CONTINUATION:
            if not self.is_established and kind != SETTINGS:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "settings are missing")
            check_header(kind, length, stream)
        if (self._block is None) == (kind == CONTINUATION):
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a header block that is not continued")

    # Header blocks

    def _headers(self, stream: bytes, flags: int, payload: bytes) -> None:
        begin, end = 0, len(payload)
        if flags & PADDED:
            if not payload:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "padding that is missing")
            begin, end = 1, end - payload[0]
        if flags & PRIORITIZED:
            if len(payload) < begin + 5:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "a priority that is missing")
            if is_own_parent(stream, payload[begin:]):
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")
            begin += 5
        if end < begin:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "padding that is too long")
        block = payload[begin:end]
        if flags & END_HEADERS:
            self._take_block(stream, flags, block)
        else:
            self._block = stream, flags, bytearray(block), 0

    def _continuation(self, stream: bytes, flags: int, payload: bytes) -> None:
        assert self._block is not None
        first, first_flags, block, number = self._block
        if stream != first:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a header block that is not continued")
        block += payload
        if number >= self.limits.max_continuations or len(block) > self.limits.max_block_bytes:
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "a header block that is too long")
        self._block = first, first_flags, block, number + 1
        if flags & END_HEADERS:
            self._block = None
            self._take_block(stream, first_flags, bytes(block))

    def _take_block(
        self, stream: bytes, flags: int, raw: bytes, data: bytes = b"", at: int = 0, /
    ) -> int | None:
        """Take a block; return where the message that follows it in `data` ends, if that, too."""
        raise NotImplementedError

    def _take_trailers(self, stream: bytes, flags: int, raw: bytes) -> None:
        """Take the header block that ends a message."""
        fields = self.reader.read_trailers(raw)
        if stream in self._reset:
            self._small()
            return
        state = self._awaken(stream)
        if state.ended:
            raise Http2Error(ErrorCode.STREAM_CLOSED, "HEADERS on a stream that is over")
        if fields is None or not flags & END_STREAM or state.content_left:
            self._fail(stream, ErrorCode.PROTOCOL_ERROR)
            return
        self._end_peer(stream, state)
        self.events.append((kinds.TRAILERS, stream, fields, True))
