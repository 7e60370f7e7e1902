"""Data that a peer sends: within its windows, for streams that are open, whole or in parts."""

from typing import Any

from serving.http2 import events as kinds
from serving.http2.events import Event
from serving.http2.frames import (
    CONNECTION,
    END_STREAM,
    PADDED,
    RST_STREAM,
    WINDOW_UPDATE,
    ErrorCode,
    Http2Error,
    frame,
    word,
)
from serving.http2.limits import Budget, Limits
from serving.http2.outgoing import Output, Stream


class Input(Output):
    """Takes DATA frames."""

    def __init__(self, limits: Limits) -> None:
        """See `Output`."""
        super().__init__(limits)
        self.events: list[Event] = []
        """The events of the last bytes."""
        self.num_recognised = self.recognised_bytes = 0
        self._now_s = 0.0
        self._resets = Budget(limits.burst_resets, limits.resets_per_s)
        self._receive_window = limits.connection_window_bytes
        self._partial: tuple[bytes, int, int, bool] | None = None
        """A DATA frame that has come in part: stream, data and padding to come, whether it ends."""
        self._skip = 0
        """Bytes to come of a frame that is ignored."""

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
            self.events.append((kinds.RESET, stream, (code, state), True))
            self.reset(stream, code)
        else:
            self._note_reset(stream)
            self._ready.append(frame(RST_STREAM, 0, stream, word(code)))

    def _account_recognised(self) -> None:
        """Take the messages that were recognised off the windows and limits."""
        self._small_frames.left += self.limits.small_frames_per_request * self.num_recognised
        self._use_window(self.recognised_bytes)
        self.num_recognised = self.recognised_bytes = 0

    def _use_window(self, num_bytes: int) -> None:
        """Take data off the connection's window; open it again in time."""
        self._receive_window -= num_bytes
        if self._receive_window < 0:
            raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "more data than the window allows")
        whole = self.limits.connection_window_bytes
        if self._receive_window < whole // 2:
            self._ready.append(_wider(whole - self._receive_window))
            self._receive_window = whole

    def _data(self, stream: bytes, flags: int, data: bytes, begin: int, end: int) -> None:
        """Take a DATA frame, or its part that has come."""
        length, padding = end - begin, 0
        self._use_window(length)
        if flags & PADDED:
            if length == 0 or begin >= len(data):
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "padding that is missing")
            padding = data[begin]
            begin += 1
            if padding > end - begin:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "padding that is too long")
        ends = bool(flags & END_STREAM)
        end -= padding
        if length < self.limits.small_bytes and not ends:
            self._small()
        else:
            self._small_frames.left += 1
        if self._accept_data(stream, length, end - begin, ends=ends):
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
        self._receive_window -= length
        if self._receive_window < limits.connection_window_bytes // 2:
            self._use_window(0)
        state.receive_window -= length
        if ended:
            self._end_peer(stream, state)
        self.events.append((kinds.DATA, stream, data, ended))
        return True

    def _accept_data(self, stream: bytes, length: int, num_bytes: int, *, ends: bool) -> bool:
        """Return whether data is for an open stream; else it is ignored or an error."""
        if stream not in self.streams:
            if self._is_idle(stream):
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "DATA on a stream that is not open")
            if stream not in self._reset:
                self._fail(stream, ErrorCode.STREAM_CLOSED)
            elif length < self.limits.small_bytes:
                self._small()
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
        if state is None or (not part and not ended):
            return
        if ended:
            self._end_peer(stream, state)
        self.events.append((kinds.DATA, stream, part, ended))

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

    def _end_peer(self, stream: bytes, state: Any) -> None:
        """Note that the peer has sent everything on a stream."""
        state.ended = True
        if state.finished:
            del self.streams[stream]

    def _awaken(self, stream: bytes) -> Stream:
        """Return a stream's state; report it first if it was only recognised so far."""
        state = self.streams[stream]
        if isinstance(state, Stream):
            return state
        if not state.ended:
            self.events.append((kinds.HEADERS, stream, state.block, False))
        return self._full(stream)

    def _is_idle(self, stream: bytes) -> bool:
        """Return whether a stream was never opened."""
        raise NotImplementedError


def _wider(increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, CONNECTION, word(increment))
