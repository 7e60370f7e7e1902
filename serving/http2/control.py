"""A connection's own business: settings, pings, windows, resets, and the end."""

from struct import Struct

from serving.http2 import events as kinds
from serving.http2.data import Input
from serving.http2.frames import (
    ACK,
    CONNECTION,
    DEFAULT_FRAME,
    DEFAULT_WINDOW,
    ENABLE_PUSH,
    GOAWAY,
    HEADER_TABLE_SIZE,
    INITIAL_WINDOW_SIZE,
    MAX_CONCURRENT_STREAMS,
    MAX_FRAME_SIZE,
    MAX_HEADER_LIST_SIZE,
    MAX_WINDOW,
    PING,
    PRIORITY,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    ErrorCode,
    Http2Error,
    frame,
    word,
)
from serving.http2.limits import Limits

_SETTING = Struct(">HI")
_MOST_FRAME = 1 << 16
"""The longest frame that is sent, even if the peer takes longer ones: other answers wait for it."""


class Control(Input):
    """Takes the frames that are neither headers nor data."""

    def __init__(self, limits: Limits, first: bytes) -> None:
        """Begin; the preface, if there is one, and our settings are ready to be sent."""
        super().__init__(limits)
        self.is_established = False
        """Whether the peer's settings have come."""
        wider = word(limits.connection_window_bytes - DEFAULT_WINDOW)
        self._ready += (
            first,
            frame(SETTINGS, 0, CONNECTION, self._settings()),
            frame(WINDOW_UPDATE, 0, CONNECTION, wider),
        )

    def _settings(self) -> bytes:
        limits = self.limits
        pairs = (
            (MAX_CONCURRENT_STREAMS, limits.max_streams),
            (INITIAL_WINDOW_SIZE, limits.stream_window_bytes),
            (MAX_FRAME_SIZE, limits.max_frame_bytes),
            (MAX_HEADER_LIST_SIZE, limits.announced_header_bytes),
        )
        return b"".join(_SETTING.pack(*pair) for pair in pairs)

    def _control(self, kind: int, stream: bytes, flags: int, payload: bytes) -> None:
        if kind == WINDOW_UPDATE:
            self._window_update(stream, int.from_bytes(payload, "big") & MAX_WINDOW)
        elif kind == RST_STREAM:
            self._reset_by_peer(stream, int.from_bytes(payload, "big"))
        elif kind == PING:
            self._small()
            if not flags & ACK:
                self._ready.append(frame(PING, ACK, CONNECTION, payload))
        elif kind == SETTINGS:
            self._take_settings(flags, payload)
        elif kind == GOAWAY:
            if len(payload) < 8:
                raise Http2Error(ErrorCode.FRAME_SIZE_ERROR, "GOAWAY of a wrong length")
            code = int.from_bytes(payload[4:8], "big")
            last = word(int.from_bytes(payload[:4], "big") & MAX_WINDOW)
            self.events.append((kinds.GOAWAY, last, code, False))
        elif kind == PRIORITY:
            self._small()
            if is_own_parent(stream, payload):
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
        state = self.streams.pop(stream, None)
        if state is None and self._is_idle(stream):
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "RST_STREAM on an idle stream")
        self._count_reset()
        if state is None:
            return
        self.blocked.pop(stream, None)
        self.events.append((kinds.RESET, stream, (code, state), True))

    def _take_settings(self, flags: int, payload: bytes) -> None:
        if flags & ACK:
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
        self._ready.append(frame(SETTINGS, ACK, CONNECTION))

    def _take_setting(self, name: int, value: int) -> None:
        if name == HEADER_TABLE_SIZE:
            self.encoder.resize(value)
        elif name == ENABLE_PUSH:
            if value > 1:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "ENABLE_PUSH is neither 0 nor 1")
        elif name == INITIAL_WINDOW_SIZE:
            if value > MAX_WINDOW:
                raise Http2Error(ErrorCode.FLOW_CONTROL_ERROR, "a window that is too large")
            self._set_first_window(value)
        elif name == MAX_FRAME_SIZE:
            if not DEFAULT_FRAME <= value < 1 << 24:
                raise Http2Error(ErrorCode.PROTOCOL_ERROR, "a wrong MAX_FRAME_SIZE")
            self._max_frame = min(value, _MOST_FRAME)


def is_own_parent(stream: bytes, priority: bytes) -> bool:
    """Return whether a priority makes a stream depend on itself."""
    return int.from_bytes(priority[:4], "big") & MAX_WINDOW == int.from_bytes(stream, "big")
