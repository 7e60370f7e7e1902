"""The sending half of a connection: frames that are ready, and data that windows keep back.

A stream (RFC 9113, section 5.1) is in `streams` from its first frame until both sides have ended it
or either has reset it:

    is in `streams`   `ended`   `finished`
    open              no        no
    half closed       yes       no           the peer has sent everything
    half closed       no        yes          we have sent everything (a client's request)
    closed            it is not in `streams`; in `_reset` if its frames may be under way
"""

from typing import Any

from serving.http2.frames import (
    CONNECTION,
    CONTINUATION,
    DATA,
    DEFAULT_FRAME,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MAX_WINDOW,
    PING,
    RST_STREAM,
    WINDOW_UPDATE,
    ErrorCode,
    Http2Error,
    frame,
    word,
)
from serving.http2.headers import Block, OpenCall
from serving.http2.hpack.encoder import Encoder
from serving.http2.limits import Budget, Limits

_MAX_RESET = 4096
"""Streams of which is kept that we reset them; frames on older ones count as errors."""


class Stream:
    """A stream that is more than one message in one piece."""

    call: Any = None
    """For the application: its own state of the stream, until it has ended it."""
    ended = False
    finished = False
    send_credit = 0
    """The peer's additions to the stream's first window, minus the bytes sent: so a change of that
    window, which counts for all streams, need not touch them."""
    owed = 0
    """Bytes acknowledged and not yet returned to the window."""
    content_left: int | None = None
    """Bytes of data that are still to come by `content-length`."""
    unsent: bytes | bytearray = b""
    trailers: bytes | None = None
    """The end of the stream after `unsent`: a header block, or only the flag."""

    def __init__(self, block: Block | None, receive_window: int) -> None:
        self.block = block
        self.receive_window = receive_window


class Output:
    """Writes frames, within the peer's windows."""

    def __init__(self, limits: Limits) -> None:
        """Start with the protocol's first values."""
        self.limits = limits
        self.streams: dict[bytes, Stream | OpenCall] = {}
        """The streams that are not closed, by number."""
        self.encoder = Encoder()
        self._ready: list[bytes] = []
        self.blocked: dict[bytes, Stream] = {}
        """Those with data that windows keep back."""
        self._send_window = DEFAULT_WINDOW
        self._first_window = DEFAULT_WINDOW
        """The window that the peer gives each stream at first."""
        self._is_wider = False
        """Whether a window that counts for all streams has changed."""
        self._max_frame = DEFAULT_FRAME
        self._reset: dict[bytes, None] = {}
        self._small_frames = Budget(limits.burst_small_frames, limits.small_frames_per_s)

    def data_to_send(self) -> bytes:
        """Return the bytes for the peer, once."""
        data = b"".join(self._ready)
        self._ready.clear()
        return data

    def num_unsent(self, stream: bytes | None = None) -> int:
        """Return the bytes that windows keep back, on a stream or in all."""
        if stream is None:
            return sum(len(state.unsent) for state in self.blocked.values())
        state = self.blocked.get(stream)
        return 0 if state is None else len(state.unsent)

    def _send(self, stream: bytes, data: bytes, trailers: bytes | None = None) -> None:
        """Send data, as the windows allow, and after it trailers.

        Args:
            stream: one that is open.
            data: may be empty.
            trailers: a header block that ends the stream, and needs and changes no table; empty
                for an end without one, None for no end.
        """
        state = self._full(stream)
        if trailers is not None:
            state.trailers = trailers
            state.call = None
        if not state.unsent:
            state.unsent = bytearray(data)
        else:
            state.unsent += data
        self._pump(stream, state)

    def reset(self, stream: bytes, code: ErrorCode) -> None:
        """End a stream at once; nothing happens on a closed stream."""
        state = self.streams.pop(stream, None)
        if state is None:
            return
        self.blocked.pop(stream, None)
        if not state.ended:  # more of it may be under way
            self._note_reset(stream)
        self._ready.append(frame(RST_STREAM, 0, stream, word(code)))

    def acknowledge(self, stream: bytes, num_bytes: int) -> None:
        """Let the peer send as much more on a stream."""
        state = self.streams.get(stream)
        if not isinstance(state, Stream) or state.ended:
            return
        state.owed += num_bytes
        if state.owed >= self.limits.stream_window_bytes // 4:
            state.receive_window += state.owed
            self._ready.append(frame(WINDOW_UPDATE, 0, stream, word(state.owed)))
            state.owed = 0

    def ping(self, data: bytes = bytes(8)) -> None:
        """Ask the peer for a sign of life; `data` has 8 bytes."""
        self._ready.append(frame(PING, 0, CONNECTION, data))

    def _go_away(self, last: bytes, code: ErrorCode) -> None:
        self._ready.append(frame(GOAWAY, 0, CONNECTION, last + word(code)))

    def _full(self, stream: bytes) -> Stream:
        """Return a stream's state as an object of its own."""
        state = self.streams[stream]
        if isinstance(state, Stream):
            return state
        full = Stream(state.block, self.limits.stream_window_bytes)
        full.call, full.ended = state.call, state.ended
        full.content_left = state.block.kind.content_length
        self.streams[stream] = full
        return full

    def _send_block(self, stream: bytes, block: bytes, *, end: bool) -> None:
        flags = END_STREAM if end else 0
        kind, most = HEADERS, self._max_frame
        if self.encoder.resized:
            block, self.encoder.resized = self.encoder.resized + block, b""
        while len(block) > most:
            self._ready.append(frame(kind, flags, stream, block[:most]))
            block, kind, flags = block[most:], CONTINUATION, 0
        self._ready.append(frame(kind, flags | END_HEADERS, stream, block))

    def _pump(self, stream: bytes, state: Stream) -> None:
        """Send as much of a stream as the windows allow."""
        unsent, at = state.unsent, 0
        room = min(len(unsent), self._send_window, self._first_window + state.send_credit)
        while at < room:
            end = min(room, at + self._max_frame)
            flags = END_STREAM if end == len(unsent) and state.trailers == b"" else 0
            self._ready.append(frame(DATA, flags, stream, bytes(unsent[at:end])))
            self._small_frames.left += 2  # updates of the stream's and the connection's window
            at = end
        if at:
            self._send_window -= at
            state.send_credit -= at
            del unsent[:at]  # type: ignore[union-attr]
        if unsent:
            self.blocked[stream] = state
            return
        self.blocked.pop(stream, None)
        if state.trailers is not None:
            if state.trailers:
                self._send_block(stream, state.trailers, end=True)
            elif not at:
                self._ready.append(frame(DATA, END_STREAM, stream))
            self._finish(stream, state)

    def _finish(self, stream: bytes, state: Stream) -> None:
        """Note that everything was sent on a stream."""
        state.finished = True
        if state.ended:
            del self.streams[stream]

    def _note_reset(self, stream: bytes) -> None:
        """Remember that frames of a stream may be under way that nobody waits for."""
        if len(self._reset) >= _MAX_RESET:
            del self._reset[next(iter(self._reset))]
        self._reset[stream] = None

    # Windows

    def _widen(self, stream: bytes, increment: int) -> None:
        """Take a WINDOW_UPDATE.

        Raises:
            Http2Error: the connection's window is too large now.
        """
        if stream == CONNECTION:
            self._send_window += increment
            if self._send_window > MAX_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "a window that is too large")
            self._is_wider = True
        elif stream in self.streams:
            state = self._full(stream)
            state.send_credit += increment
            if self._first_window + state.send_credit > MAX_WINDOW:
                self.reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
            elif stream in self.blocked:
                self._pump(stream, state)

    def _set_first_window(self, size: int) -> None:
        """Take the peer's setting, which also counts for the streams that are open."""
        self._first_window = size
        self._is_wider = True

    def _unblock(self) -> None:
        """Send as much as larger windows allow; once a read: there may be a thousand streams."""
        self._is_wider = False
        for stream, state in list(self.blocked.items()):
            if self._send_window <= 0:
                break
            self._pump(stream, state)
