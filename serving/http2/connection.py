"""One side of a connection: bytes to events, and frames back, as far as the peer's windows allow.

A stream is in `Connection.streams` from its first frame until it is CLOSED (`streams.py`). One that
we have reset is in `_reset` then, since frames of the peer may be under way.
"""

from struct import Struct
from typing import Any, Protocol

from serving.http2 import frames
from serving.http2.events import (
    DataReceived,
    Event,
    GoAway,
    HeadersReceived,
    Layout,
    StreamReset,
    TrailersReceived,
)
from serving.http2.frames import CONNECTION, DATA, HEADERS, ErrorCode, Http2Error, frame, word
from serving.http2.headers import Block, BlockRecogniser, HeaderReader, SharedHeaders
from serving.http2.hpack import Encoder
from serving.http2.limits import Limits, RateBudget
from serving.http2.pieces import Pieces
from serving.http2.streams import CLOSED, PEER_ENDS, RESET, WE_END, OpenCall, Stream

_HEADER = Struct(">IB4s").unpack_from
_FRAME_HEADER = Struct(">IB4s").pack
"""A frame's length and kind, flags, stream."""
_SETTING = Struct(">HI")
_HTTP1 = int.from_bytes(b"HTT", "big"), b"P"[0]
"""How an answer of HTTP/1.1 begins, read as the length and the kind of a frame."""
_MAX_WAIT_BYTES = 4096
"""DATA frames up to this length are handed on whole."""
_MAX_SENT_FRAME = 1 << 16
"""The longest frame that is sent, even if the peer takes longer ones: other answers wait for it."""
_TURN_BYTES = 1 << 20
"""Bytes of `Pieces` that are made frames of at a time."""
_MAX_RESET = 4096
"""Streams of which is kept that we reset them; frames on older ones count as errors."""


class CallRecogniser(BlockRecogniser, Protocol):
    """What takes calls that repeat others, off the bytes of a server's connection."""

    runs: dict[bytes, Any]
    """How they are found, by the first four bytes of a frame; empty if none is expected."""

    def expect(self, block: SharedHeaders, layout: Layout, token: Any, *, calls: bool) -> None:
        """Recognise messages of a layout on streams that begin with a block."""

    def scan(self, data: bytes, at: int) -> tuple[int, int]:
        """Take the calls that begin at `at`; return how far, and up to where there are no more."""

    def take_message(self, stream: bytes, block: Block, data: bytes, at: int) -> int:
        """Take the message that follows a block; return where it ends, or 0."""

    def wants_no_table(self, stream: bytes, block: Block) -> bool:
        """Return whether the peer should use no table, since its blocks are never the same."""


class Connection:
    """One side of a connection, without I/O; not safe to share between threads."""

    recogniser: CallRecogniser | None = None
    """A server's may have one; without it all bytes are read frame by frame."""

    def __init__(
        self, limits: Limits, reader: HeaderReader, encoder: Encoder, first: bytes = b""
    ) -> None:
        """Begin; the first bytes are ready to be sent.

        Args:
            limits: the peer's limits.
            reader: reads the peer's header blocks.
            encoder: writes ours.
            first: the preface that precedes our settings.
        """
        self.limits = limits
        self.streams: dict[bytes, Stream | OpenCall] = {}
        """The streams that are not closed, by number."""
        self.last_stream = CONNECTION
        """The latest stream that the peer has opened."""
        self.is_established = False
        """Whether the peer's settings have come."""
        self._has_gone = False
        """Whether new streams are refused."""
        self._reset: dict[bytes, None] = {}
        # Bytes to events
        self.events: list[Event] = []
        """The events of the bytes that are processed."""
        self.reader = reader
        self._preface = b""
        """The part of the peer's preface that has not arrived."""
        self._rest = b""
        """The start of a frame that has not come whole."""
        self._block: tuple[bytes, int, bytearray, int] | None = None
        """A header block to be continued: stream, flags, its bytes, number of frames."""
        self._partial: tuple[bytes, int, int, bool] | None = None
        """A DATA frame that has come in part: stream, data and padding to come, whether it ends."""
        self._skip = 0
        """Bytes to come of a frame that is ignored."""
        self._receive_window = limits.connection_window_bytes
        self._now_s = 0.0
        self._resets = RateBudget(limits.burst_resets, limits.resets_per_s)
        self._small_frames = RateBudget(limits.burst_small_frames, limits.small_frames_per_s)
        # Frames to the peer
        self.encoder = encoder
        self.blocked: dict[bytes, Stream] = {}
        """Streams with data that windows keep back, or that waits for its turn."""
        self.due: dict[bytes, Stream] = {}
        """Streams with `Pieces`, which take turns; there is more to send now as long as any are."""
        self.send_window = frames.DEFAULT_WINDOW
        """Bytes that the peer takes on all streams together."""
        self._first_window = frames.DEFAULT_WINDOW
        """The window that the peer gives each stream at first."""
        self._is_wider = False
        """Whether a window that counts for all streams has changed."""
        self._max_frame = frames.DEFAULT_FRAME
        wider = word(limits.connection_window_bytes - frames.DEFAULT_WINDOW)
        self._ready = [
            first,
            frame(frames.SETTINGS, 0, CONNECTION, self._settings()),
            frame(frames.WINDOW_UPDATE, 0, CONNECTION, wider),
        ]

    def _settings(self) -> bytes:
        limits = self.limits
        pairs = (
            (frames.MAX_CONCURRENT_STREAMS, limits.max_streams),
            (frames.INITIAL_WINDOW_SIZE, limits.stream_window_bytes),
            (frames.MAX_FRAME_SIZE, limits.max_frame_bytes),
            (frames.MAX_HEADER_LIST_SIZE, limits.announced_header_bytes),
            (frames.HEADER_TABLE_SIZE, limits.header_table_bytes),
        )
        return b"".join(_SETTING.pack(*pair) for pair in pairs)

    def receive(self, data: bytes, now_s: float) -> list[Event]:
        """Process bytes from the peer.

        Args:
            data: the bytes.
            now_s: the time, on a clock that does not go back; for the rate of resets.

        Raises:
            Http2Error: the peer broke the protocol; the reason is ready to be sent to it.
        """
        self._now_s, at = now_s, 0
        if self._rest:
            data = self._rest + data
        try:
            if self._preface:
                at = self._take_preface(data)
            if self._partial or self._skip:
                at = self._continue(data)
            self._take_frames(data, at, at)
        except Http2Error as err:
            self.go_away(err.code)
            raise
        finally:
            events, self.events = self.events, []  # they have messages, and streams that are over
        return events

    def _take_frames(self, data: bytes, at: int, looked_at: int) -> None:
        """Take the frames from `at` on; up to `looked_at` none of them is recognised."""
        size, recogniser = len(data), self.recogniser
        while size - at >= frames.FRAME_BYTES:
            if recogniser and recogniser.runs and at >= looked_at and self._block is None:
                at, looked_at = recogniser.scan(data, at)
                if size - at < frames.FRAME_BYTES:
                    break
            end = self._frame(data, at)
            if not end:
                break
            at = end
        if self._is_wider:
            self._unblock()
        self._rest = data[at:] if at < size else b""

    def _frame(self, data: bytes, at: int) -> int:
        """Take the frame at `at`; return where it ends, 0 if it is incomplete."""
        first: int
        stream: bytes
        first, flags, stream = _HEADER(data, at)
        kind, length = first & 0xFF, first >> 8
        if stream[0] & 0x80:
            stream = bytes((stream[0] & 0x7F,)) + stream[1:]
        if (
            kind > HEADERS
            or length > frames.DEFAULT_FRAME
            or self._block
            or not self.is_established
        ):
            self._check(kind, length, stream)
        begin, size = at + frames.FRAME_BYTES, len(data)
        end = begin + length
        if end > size:
            if kind <= frames.CONTINUATION and (kind != DATA or length <= _MAX_WAIT_BYTES):
                return 0
            if begin == size:  # the length of padding comes next, perhaps
                return 0
            if kind != DATA:
                self._small()
                self._skip = end - size
                return size
        if kind == DATA:
            if (
                flags > frames.END_STREAM
                or end > size
                or not self._whole_data(stream, data[begin:end], ended=flags == frames.END_STREAM)
            ):
                self._data(stream, flags, data, begin, end)
        elif kind == HEADERS:
            if flags & ~frames.END_STREAM == frames.END_HEADERS:
                return self._take_block(stream, flags, data[begin:end], data, end) or end
            self._headers(stream, flags, data[begin:end])
        elif kind == frames.CONTINUATION:
            self._continuation(stream, flags, data[begin:end])
        elif kind < frames.CONTINUATION:
            self._control(kind, stream, flags, data[begin:end])
        else:
            self._small()
        return min(end, size)

    def _check(self, kind: int, length: int, stream: bytes) -> None:
        """Refuse a frame by its header alone."""
        limits = self.limits
        if not self.is_established and (length, kind) == _HTTP1:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "the peer speaks HTTP/1.1")
        is_whole = DATA < kind <= frames.CONTINUATION  # others are handed on as they come
        if length > (limits.max_block_bytes if is_whole else limits.max_frame_bytes):
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "a frame that is too long")
        if kind <= frames.CONTINUATION:
            if not self.is_established and kind != frames.SETTINGS:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "settings are missing")
            frames.check_header(kind, length, stream)
        if (self._block is None) == (kind == frames.CONTINUATION):
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a header block that is not continued")

    # Header blocks

    def _headers(self, stream: bytes, flags: int, payload: bytes) -> None:
        begin, end = 0, len(payload)
        if flags & frames.PADDED:
            if not payload:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "padding that is missing")
            begin, end = 1, end - payload[0]
        if flags & frames.PRIORITIZED:
            if len(payload) < begin + 5:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "a priority that is missing")
            if _is_own_parent(stream, payload[begin:]):
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a stream that depends on itself")
            begin += 5
        if end < begin:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "padding that is too long")
        block = payload[begin:end]
        if flags & frames.END_HEADERS:
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
        if flags & frames.END_HEADERS:
            self._block = None
            self._take_block(stream, first_flags, bytes(block))

    def _take_trailers(self, stream: bytes, flags: int, raw: bytes) -> None:
        """Take the header block that ends a message."""
        fields = self.reader.read_trailers(raw)
        if stream in self._reset:
            self._small()
            return
        state = self._awaken(stream)
        if state.ended:
            raise Http2Error(ErrorCode.STREAM_CLOSED, "HEADERS on a stream that is over")
        if fields is None or not flags & frames.END_STREAM or state.content_left:
            self._fail(stream, ErrorCode.PROTOCOL_ERROR)
            return
        self._end_peer(stream, state)
        self.events.append(TrailersReceived(stream, fields))

    # Data and windows of ours

    def _use_window(self, num_bytes: int) -> None:
        """Take data off the connection's window; open it again in time."""
        self._receive_window -= num_bytes
        if self._receive_window < 0:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "more data than the window allows")
        whole = self.limits.connection_window_bytes
        if self._receive_window < whole // 2:
            increment = word(whole - self._receive_window)
            self._ready.append(frame(frames.WINDOW_UPDATE, 0, CONNECTION, increment))
            self._receive_window = whole

    def _data(self, stream: bytes, flags: int, data: bytes, begin: int, end: int) -> None:
        """Take a DATA frame, or its part that has come."""
        length, padding = end - begin, 0
        self._use_window(length)
        if flags & frames.PADDED:
            if length == 0 or begin >= len(data):
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "padding that is missing")
            padding = data[begin]
            begin += 1
            if padding > end - begin:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "padding that is too long")
        ends = bool(flags & frames.END_STREAM)
        end -= padding
        is_accepted = self._accept_data(stream, length, end - begin, ends=ends)
        if length < self.limits.small_bytes and not (ends and is_accepted):
            self._small()
        elif is_accepted:
            self._small_frames.left += 1
        if is_accepted:
            part = data[begin:end]
            has_all = len(part) == end - begin
            self._take_data(stream, part, ended=ends and has_all)
            if padding:
                self.acknowledge(stream, length - (end - begin))
        missing = end - len(data)
        if missing + padding > 0:
            pad_left = min(padding, missing + padding)
            self._partial = stream, max(0, missing), pad_left, ends

    def _whole_data(self, stream: bytes, data: bytes, *, ended: bool) -> bool:
        """Take a frame as most are; False if `_data` has to look closer."""
        state, length, limits = self.streams.get(stream), len(data), self.limits
        if (
            state.__class__ is not Stream
            or state.ended
            or state.content_left is not None
            or not (limits.small_bytes <= length <= state.receive_window)
        ):
            return False
        self._small_frames.left += 1
        self._use_window(length)
        state.receive_window -= length
        if ended:
            self._end_peer(stream, state)
        self.events.append(DataReceived(stream, data, ended))
        return True

    def _accept_data(self, stream: bytes, length: int, num_bytes: int, *, ends: bool) -> bool:
        """Return whether data is for an open stream; else it is ignored or an error."""
        if stream not in self.streams:
            if self._is_idle(stream):
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "DATA on a stream that is not open")
            if stream not in self._reset:
                self._fail(stream, ErrorCode.STREAM_CLOSED)
            return False
        state = self._awaken(stream)
        if state.ended:
            self._fail(stream, ErrorCode.STREAM_CLOSED)
            return False
        state.receive_window -= length
        if state.receive_window < 0:
            self._fail(stream, ErrorCode.FLOW_CONTROL_ERROR)
            return False
        if state.content_left is not None:
            state.content_left -= num_bytes
            if state.content_left < 0 or (ends and state.content_left):
                self._fail(stream, ErrorCode.PROTOCOL_ERROR)
                return False
        return True

    def _take_data(self, stream: bytes, part: bytes, *, ended: bool) -> None:
        state = self.streams.get(stream)
        if not isinstance(state, Stream) or (not part and not ended):
            return
        if ended:
            self._end_peer(stream, state)
        self.events.append(DataReceived(stream, part, ended))

    def _continue(self, data: bytes) -> int:
        """Take the rest of a frame that came in part before; return where it ends."""
        if self._partial is None:
            at = min(self._skip, len(data))
            self._skip -= at
            return at
        stream, missing, padding, ends = self._partial
        part = data[:missing]
        at = min(len(data), missing + padding)
        missing -= len(part)
        padding -= at - len(part)
        if part:
            self._take_data(stream, part, ended=ends and not missing)
        self._partial = (stream, missing, padding, ends) if missing + padding else None
        return at

    def _end_peer(self, stream: bytes, state: Stream) -> None:
        """Note that the peer has sent everything on a stream."""
        if state.move(PEER_ENDS) is CLOSED:
            del self.streams[stream]

    def _awaken(self, stream: bytes) -> Stream:
        """Return a stream's state; report it first if it was only recognised so far."""
        state = self.streams[stream]
        if isinstance(state, Stream):
            return state
        if not state.ended:
            self.events.append(HeadersReceived(stream, state.block, is_end=False))
        return self._full(stream)

    # Other frames

    def _small(self) -> None:
        """Count a frame that costs more than it carries."""
        if not self._small_frames.take(self._now_s):
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many small frames")

    def _count_reset(self) -> None:
        if not self._resets.take(self._now_s):
            raise Http2Error(ErrorCode.ENHANCE_YOUR_CALM, "too many resets")

    def _fail(self, stream: bytes, code: ErrorCode) -> None:
        """End a stream for an error of the peer's, which is as if the peer had reset it."""
        self._count_reset()
        state = self.streams.get(stream)
        if state is not None:
            self.events.append(StreamReset(stream, code, state))
            self.reset(stream, code)
        else:
            self._note_reset(stream)
            self._ready.append(frame(frames.RST_STREAM, 0, stream, word(code)))

    def _control(self, kind: int, stream: bytes, flags: int, payload: bytes) -> None:
        if kind == frames.WINDOW_UPDATE:
            self._window_update(stream, int.from_bytes(payload, "big") & frames.MAX_WINDOW)
        elif kind == frames.RST_STREAM:
            self._reset_by_peer(stream, int.from_bytes(payload, "big"))
        elif kind == frames.PING:
            self._small()
            if not flags & frames.ACK:
                self._ready.append(frame(frames.PING, frames.ACK, CONNECTION, payload))
        elif kind == frames.SETTINGS:
            self._take_settings(flags, payload)
        elif kind == frames.GOAWAY:
            if len(payload) < 8:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of a wrong length")
            code = int.from_bytes(payload[4:8], "big")
            last = word(int.from_bytes(payload[:4], "big") & frames.MAX_WINDOW)
            self.events.append(GoAway(last, code))
        elif kind == frames.PRIORITY:
            self._small()
            if _is_own_parent(stream, payload):
                self._fail(stream, ErrorCode.PROTOCOL_ERROR)
        else:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "PUSH_PROMISE, which nobody allowed")

    def _window_update(self, stream: bytes, increment: int) -> None:
        self._small()
        if stream != CONNECTION and stream not in self.streams:
            if self._is_idle(stream):
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "WINDOW_UPDATE on an idle stream")
            return  # it crossed the end of the stream
        if increment:
            if stream != CONNECTION:
                self._awaken(stream)
            self._widen(stream, increment)
        elif stream == CONNECTION:
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "an increment of 0")
        else:
            self._fail(stream, ErrorCode.PROTOCOL_ERROR)

    def _reset_by_peer(self, stream: bytes, code: int) -> None:
        state = self._close(stream)
        if state is None and self._is_idle(stream):
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        self._count_reset()
        if state is None:
            return
        _end(state)
        self.events.append(StreamReset(stream, code, state))

    def _take_settings(self, flags: int, payload: bytes) -> None:
        if flags & frames.ACK:
            if payload:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong length")
            if not self.is_established:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "settings are missing")
            return
        if len(payload) % _SETTING.size:
            raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "SETTINGS of a wrong length")
        self._small()
        for name, value in dict(_SETTING.iter_unpack(payload)).items():
            self._take_setting(name, value)
        self.is_established = True
        self._ready.append(frame(frames.SETTINGS, frames.ACK, CONNECTION))

    def _take_setting(self, name: int, value: int) -> None:
        if name == frames.HEADER_TABLE_SIZE:
            self.encoder.resize(value)
        elif name == frames.ENABLE_PUSH:
            if value > 1:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
        elif name == frames.INITIAL_WINDOW_SIZE:
            if value > frames.MAX_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "a window that is too large")
            self._first_window = value  # it also counts for the streams that are open
            self._is_wider = True
        elif name == frames.MAX_FRAME_SIZE:
            if not frames.DEFAULT_FRAME <= value < 1 << 24:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a wrong MAX_FRAME_SIZE")
            self._max_frame = min(value, _MAX_SENT_FRAME)

    def _widen(self, stream: bytes, increment: int) -> None:
        """Take a WINDOW_UPDATE.

        Raises:
            Http2Error: the connection's window is too large now.
        """
        if stream == CONNECTION:
            self.send_window += increment
            if self.send_window > frames.MAX_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "a window that is too large")
            self._is_wider = True
        elif stream in self.streams:
            state = self._full(stream)
            state.send_credit += increment
            if self._first_window + state.send_credit > frames.MAX_WINDOW:
                self.reset(stream, ErrorCode.FLOW_CONTROL_ERROR)
            elif stream in self.blocked:
                self._pump(stream, state)

    def _unblock(self) -> None:
        """Send as much as larger windows allow; once a read: there may be a thousand streams."""
        self._is_wider = False
        for stream, state in list(self.blocked.items()):
            if self.send_window <= 0:
                break
            self._pump(stream, state)

    # Frames to the peer

    def data_to_send(self) -> bytes:
        """Return the bytes for the peer, once; of long data a part, if any is `due`."""
        if self.due:
            stream = next(iter(self.due))
            state = self.due.pop(stream)
            if self._pump_pieces(state.unsent, stream, state):
                self.due[stream] = state  # behind the others
        data = b"".join(self._ready)
        self._ready.clear()
        return data

    def num_unsent(self, stream: bytes | None = None) -> int:
        """Return the bytes that windows keep back, on a stream or in all."""
        kept = self.blocked if stream is None else {stream} & self.blocked.keys()
        return sum(len(self.blocked[each].unsent) for each in kept if each not in self.due)

    def _send(self, stream: bytes, data: bytes | Pieces, trailers: bytes | None = None) -> None:
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
        unsent = state.unsent
        if isinstance(unsent, Pieces):
            unsent.append(data)
        elif isinstance(data, Pieces):
            state.unsent = Pieces([unsent] if unsent else [])
            state.unsent.append(data)
        elif not unsent:
            state.unsent = bytearray(data)
        else:
            state.unsent = unsent + data
        self._pump(stream, state)

    def reset(self, stream: bytes, code: ErrorCode) -> None:
        """End a stream at once; nothing happens on a closed stream."""
        state = self._close(stream)
        if state is None:
            return
        if not state.ended:  # more of it may be under way
            self._note_reset(stream)
        _end(state)
        self._ready.append(frame(frames.RST_STREAM, 0, stream, word(code)))

    def _close(self, stream: bytes) -> Stream | OpenCall | None:
        """Drop a stream; return its state, or None if it is not open."""
        self.blocked.pop(stream, None)
        self.due.pop(stream, None)
        return self.streams.pop(stream, None)

    def acknowledge(self, stream: bytes, num_bytes: int) -> None:
        """Let the peer send as much more on a stream."""
        state = self.streams.get(stream)
        if not isinstance(state, Stream) or state.ended:
            return
        state.owed += num_bytes
        if state.owed >= self.limits.stream_window_bytes // 4:
            state.receive_window += state.owed
            self._ready.append(frame(frames.WINDOW_UPDATE, 0, stream, word(state.owed)))
            state.owed = 0

    def ping(self, data: bytes = bytes(8)) -> None:
        """Ask the peer for a sign of life; `data` has 8 bytes."""
        self._ready.append(frame(frames.PING, 0, CONNECTION, data))

    def go_away(self, code: ErrorCode = ErrorCode.NO_ERROR) -> None:
        """Take no more streams, and say so, once."""
        if not self._has_gone:
            self._has_gone = True
            self.forget()
            self._go_away(self.last_stream, code)

    def _go_away(self, last: bytes, code: ErrorCode) -> None:
        self._ready.append(frame(frames.GOAWAY, 0, CONNECTION, last + word(code)))

    def _full(self, stream: bytes) -> Stream:
        """Return a stream's state as an object of its own."""
        state = self.streams[stream]
        if isinstance(state, Stream):
            return state
        full = Stream(state.block, self.limits.stream_window_bytes)
        full.call, full.send_credit = state.call, state.send_credit
        full.content_left = state.block.kind.content_length
        if state.ended:
            full.move(PEER_ENDS)
        self.streams[stream] = full
        return full

    def _send_block(self, stream: bytes, block: bytes, *, end: bool) -> None:
        flags = frames.END_STREAM if end else 0
        kind, most = HEADERS, self._max_frame
        if self.encoder.resized:
            block, self.encoder.resized = self.encoder.resized + block, b""
        while len(block) > most:
            self._ready.append(frame(kind, flags, stream, block[:most]))
            block, kind, flags = block[most:], frames.CONTINUATION, 0
        self._ready.append(frame(kind, flags | frames.END_HEADERS, stream, block))

    def _pump(self, stream: bytes, state: Stream) -> None:
        """Send as much of a stream as the windows allow."""
        unsent, at = state.unsent, 0
        if isinstance(unsent, Pieces):
            if unsent:
                self.blocked[stream] = self.due[stream] = state
                return
            unsent = b""
        room = min(len(unsent), self.send_window, self._first_window + state.send_credit)
        while at < room:
            end = min(room, at + self._max_frame)
            flags = frames.END_STREAM if end == len(unsent) and state.trailers == b"" else 0
            self._ready.append(frame(DATA, flags, stream, bytes(unsent[at:end])))
            self._small_frames.left += 2  # updates of the stream's and the connection's window
            at = end
        if at:
            self.send_window -= at
            state.send_credit -= at
            del unsent[:at]  # type: ignore[union-attr]
        if unsent:
            self.blocked[stream] = state
            return
        self._end_if_sent(stream, state, at)

    def _pump_pieces(self, unsent: Any, stream: bytes, state: Stream) -> bool:
        """Send a turn's part of long data, as the windows allow; return whether more may follow."""
        window = min(self.send_window, self._first_window + state.send_credit)
        room = max(0, min(len(unsent), window, _TURN_BYTES))
        self.send_window -= room
        state.send_credit -= room
        left = room
        while left:
            data = unsent.take(min(left, self._max_frame))
            left -= len(data)
            flags = frames.END_STREAM if not unsent and state.trailers == b"" else 0
            self._ready += (_FRAME_HEADER(len(data) << 8 | DATA, flags, stream), data)
            self._small_frames.left += 2  # as in `_pump`
        if unsent:
            return room == _TURN_BYTES
        state.unsent = b""
        self._end_if_sent(stream, state, room)
        return False

    def _end_if_sent(self, stream: bytes, state: Stream, at: int) -> None:
        """End a stream all of whose data was sent, the last `at` bytes just now."""
        self.blocked.pop(stream, None)
        if state.trailers is not None:
            if state.trailers:
                self._send_block(stream, state.trailers, end=True)
            elif not at:
                self._ready.append(frame(DATA, frames.END_STREAM, stream))
            self._finish(stream, state)

    def _finish(self, stream: bytes, state: Stream) -> None:
        """Note that everything was sent on a stream."""
        if state.move(WE_END) is CLOSED:
            del self.streams[stream]

    def account(self, number: int, num_bytes: int) -> None:
        """Take messages that were recognised off the connection's window and limits.

        Args:
            number: how many.
            num_bytes: the data bytes of each.
        """
        self._small_frames.left += self.limits.small_frames_per_request * number
        self._receive_window -= num_bytes * number
        if self._receive_window < self.limits.connection_window_bytes // 2:
            self._use_window(0)

    def _note_reset(self, stream: bytes) -> None:
        """Remember that frames of a stream may be under way that nobody waits for."""
        if len(self._reset) >= _MAX_RESET:
            del self._reset[next(iter(self._reset))]
        self._reset[stream] = None

    def forget(self) -> None:
        """Decode all header blocks again, and recognise none until one is expected again."""
        self.reader.clear()

    # The roles

    def _take_preface(self, data: bytes) -> int:
        """Take the preface that precedes the peer's frames; return where it ends."""
        raise NotImplementedError

    def _is_idle(self, stream: bytes) -> bool:
        """Return whether a stream was never opened."""
        raise NotImplementedError

    def _take_block(
        self, stream: bytes, flags: int, raw: bytes, data: bytes = b"", at: int = 0, /
    ) -> int | None:
        """Take a block; return where the message that follows it in `data` ends, if that, too."""
        raise NotImplementedError


def _end(state: Stream | OpenCall) -> None:
    """Note that a stream was reset; what streams share stays as it is."""
    if isinstance(state, Stream):
        state.move(RESET)


def _is_own_parent(stream: bytes, priority: bytes) -> bool:
    """Return whether a priority makes a stream depend on itself."""
    return int.from_bytes(priority[:4], "big") & frames.MAX_WINDOW == int.from_bytes(stream, "big")
