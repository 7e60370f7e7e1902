"""The client's side of a connection: requests out, responses in."""

from collections import OrderedDict

from serving.http2 import frames
from serving.http2.connection import Connection
from serving.http2.events import Event, HeadersReceived
from serving.http2.frames import ErrorCode, Http2Error, word
from serving.http2.headers import HeaderReader
from serving.http2.hpack import Encoder, Fields
from serving.http2.limits import Limits
from serving.http2.streams import WE_END, Stream

_NO_PUSH = frames.ENABLE_PUSH.to_bytes(2, "big") + bytes(4)


class ClientConnection(Connection):
    """A client's connection."""

    def __init__(self, limits: Limits, volatile: frozenset[bytes] = frozenset()) -> None:
        """Begin; the preface and our settings are ready to be sent.

        Args:
            limits: the server's limits.
            volatile: the names of request fields whose values change from call to call.
        """
        reader = HeaderReader(limits, of_requests=False)
        super().__init__(limits, reader, Encoder(volatile), first=frames.PREFACE)
        self._next = 1
        self.max_streams = 1 << 31
        """The most streams that the server lets us have open."""
        self._waiting: OrderedDict[bytes, tuple[Fields, bytes]] = OrderedDict()
        """Requests that wait until it does."""

    def _settings(self) -> bytes:
        return super()._settings() + _NO_PUSH

    def request(self, fields: Fields, data: bytes) -> bytes:
        """Send a request with all its data; return its stream."""
        stream = word(self._next)
        self._next += 2
        if self._waiting or len(self.streams) >= self.max_streams:
            self._waiting[stream] = fields, data
        else:
            self._begin(stream, fields, data)
        return stream

    def _begin(self, stream: bytes, fields: Fields, data: bytes) -> None:
        state = self.streams[stream] = Stream(None, self.limits.stream_window_bytes)
        block, size = self.encoder.encode(fields), len(data)
        room = min(self._max_frame, self._first_window, self.send_window)
        if 0 < size <= room and len(block) <= frames.DEFAULT_FRAME and not self.encoder.resized:
            # Two frames in one piece: a third of the time.
            first, second = len(block) << 8 | 1, size << 8
            self._ready.append(
                b"%b\4%b%b%b\1%b%b" % (word(first), stream, block, word(second), stream, data)
            )
            self._small_frames.left += 2
            self.send_window -= size
            state.move(WE_END)
            return
        self._send_block(stream, block, end=not data)
        if data:
            self._send(stream, data, b"")
        else:
            self._finish(stream, state)

    def cancel(self, stream: bytes) -> None:
        """Take back a request that waits, or reset its stream."""
        if stream in self.streams:
            self.reset(stream, ErrorCode.CANCEL)
        else:
            self._waiting.pop(stream, None)
        self._start_waiting()

    def receive(self, data: bytes, now_s: float) -> list[Event]:
        """Forget a stream; begin the requests that have waited for it."""
        found = super().receive(data, now_s)
        if self._waiting:
            self._start_waiting()
        return found

    def _start_waiting(self) -> None:
        while self._waiting and len(self.streams) < self.max_streams:
            stream, (fields, data) = self._waiting.popitem(last=False)
            self._begin(stream, fields, data)

    def _is_idle(self, stream: bytes) -> bool:
        return not stream[3] & 1 or int.from_bytes(stream, "big") >= self._next

    def _take_block(self, stream: bytes, flags: int, raw: bytes, /, *_: object) -> None:
        state = self.streams.get(stream)
        if state is None and self._is_idle(stream):
            raise Http2Error(ErrorCode.PROTOCOL_ERROR, "HEADERS on an idle stream")
        if state is not None and state.block is not None:
            self._take_trailers(stream, flags, raw)
            return
        block, ended = self.reader.read(raw), bool(flags & 1)
        if not isinstance(state, Stream):
            return  # the answer has crossed our reset
        if block.kind.is_malformed or (ended and block.kind.content_length):
            self._fail(stream, ErrorCode.PROTOCOL_ERROR)
            return
        if block.fields[0][1].startswith(b"1"):  # another one follows
            if ended:
                self._fail(stream, ErrorCode.PROTOCOL_ERROR)
            return
        self._small_frames.left += self.limits.small_frames_per_request
        state.block = block
        state.content_left = block.kind.content_length
        if ended:
            self._end_peer(stream, state)
        self.events.append(HeadersReceived(stream, block, ended))

    def _take_setting(self, name: int, value: int) -> None:
        if name == frames.MAX_CONCURRENT_STREAMS:
            self.max_streams = value
        super()._take_setting(name, value)
