"""As much of an HTTP/2 client as a load generator needs: one request, sent many times."""

import asyncio
import ssl
import struct
from collections import deque
from collections.abc import Callable
from time import perf_counter

from benchmarks.load.frames import (
    ACK,
    DATA,
    DEFAULT_WINDOW,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    MAX_FRAME_BYTES,
    MAX_WINDOW,
    PING,
    RESET,
    SETTINGS,
    WINDOW_UPDATE,
    Request,
    frame,
    greeting,
    split,
    widen,
)

_CONNECT_TIMEOUT_S = 10

OnAnswer = Callable[["Connection", float, bool], None]
"""Called as each call ends, with its connection, what its latency counts from, and if it is OK."""


class Connection(asyncio.Protocol):
    """One connection that sends one request again and again."""

    def __init__(self, request: Request, on_answer: OnAnswer):
        """Prepare on the running event loop; `connect` is the way to get one."""
        self.on_answer = on_answer
        self._transport: asyncio.Transport
        self._is_lost = self._is_receiving = False
        self._headers, self._body = request.headers(), request.body
        self._started: dict[int, float] = {}  # streams with a call in flight: when it began
        self._answers: dict[int, bytes] = {}  # what came of its answer
        self._windows: dict[int, int] = {}  # open streams: bytes that may be sent
        self._waiting: deque[float] = deque()
        self._unsent: deque[tuple[int, int]] = deque()  # stream, how much of the body is sent
        self._out: list[bytes] = []
        self._ok_trailers = b""
        self._next = 1
        self._max_streams = 100
        self._stream_window = self._window = DEFAULT_WINDOW
        self._received = 0
        self._rest = b""

    # What its user calls.

    def call(self, start_s: float) -> None:
        """Send the request, or keep it until the server allows another stream.

        Args:
            start_s: what the latency counts from.
        """
        if len(self._started) >= self._max_streams or self._is_lost:
            self._waiting.append(start_s)
            return
        stream = self._stream()
        self._started[stream], self._answers[stream] = start_s, b""
        self._unsent.append((stream, 0))
        self._send_unsent()
        self._flush()

    def unanswered(self) -> list[float]:
        """What the latencies of the calls that have no answer yet count from."""
        return [*self._started.values(), *self._waiting]

    def close(self) -> None:
        """Hang up."""
        self._is_lost = True
        self.on_answer = lambda *_: None
        self._transport.abort()

    # Sending.

    def _stream(self) -> int:
        """Open a stream for a call."""
        stream, self._next = self._next, self._next + 2
        self._windows[stream] = self._stream_window
        self._out.append(frame(HEADERS, END_HEADERS, stream, self._headers))
        return stream

    def _send_unsent(self) -> None:
        """Send as much as the windows allow, the streams taking turns."""
        for _ in range(len(self._unsent)):
            stream, sent = self._unsent.popleft()
            if stream not in self._windows:  # ended before it was sent whole
                continue
            left = len(self._body) - sent
            while (size := min(MAX_FRAME_BYTES, self._window, self._windows[stream], left)) > 0:
                part = self._body[sent : sent + size]
                sent, left = sent + size, left - size
                self._window -= size
                self._windows[stream] -= size
                self._out.append(frame(DATA, 0 if left else END_STREAM, stream, part))
            if left:
                self._unsent.append((stream, sent))

    def _flush(self) -> None:
        """Send what has been put out, in one piece: a system call costs more than joining."""
        if self._out and not self._is_receiving:
            self._transport.write(b"".join(self._out))
            self._out.clear()

    # Receiving.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Greet, and open the windows for answers as wide as they go."""
        self._transport = transport  # type: ignore[assignment]  # TCP's is a Transport
        self._out.append(greeting())
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail whatever was in flight."""
        self._is_lost = True
        for stream in list(self._started):
            self._end(stream, is_ok=False)

    def data_received(self, data: bytes) -> None:
        """Take in frames, then send what they gave rise to."""
        frames, self._rest = split(self._rest + data)
        self._is_receiving = True
        for each in frames:
            self._take(*each)
        self._is_receiving = False
        self._flush()

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == HEADERS:
            if flags & END_STREAM:
                self._end(stream, self._is_ok(stream, payload))
        elif kind == DATA:
            self._received += len(payload)
            if self._received > MAX_WINDOW // 2:
                self._out.append(widen(0, self._received))
                self._received = 0
            if stream in self._answers:
                self._answers[stream] += payload
        elif kind == SETTINGS and not flags & ACK:
            self._set(dict(struct.iter_unpack(">HI", payload)))
        elif kind == PING and not flags & ACK:
            self._out.append(frame(PING, ACK, 0, payload))
        elif kind == WINDOW_UPDATE:
            self._may_send(stream, *struct.unpack(">I", payload))
        elif kind == RESET:
            self._end(stream, is_ok=False)
        elif kind == GOAWAY:
            self._transport.close()

    def _is_ok(self, stream: int, trailers: bytes) -> bool:
        """Tell right answers: only they have a message, and all have the same trailers."""
        if not self._answers.get(stream):
            return False
        self._ok_trailers = self._ok_trailers or trailers
        return trailers == self._ok_trailers

    def _set(self, settings: dict[int, int]) -> None:
        self._max_streams = settings.get(3, 1_000)
        more = settings.get(4, self._stream_window) - self._stream_window
        self._stream_window += more
        for stream in self._windows:
            self._windows[stream] += more
        self._out.append(frame(SETTINGS, ACK, 0, b""))
        self._send_unsent()

    def _may_send(self, stream: int, more: int) -> None:
        if stream == 0:
            self._window += more
        elif stream in self._windows:
            self._windows[stream] += more
        if self._unsent:
            self._send_unsent()

    def _end(self, stream: int, is_ok: bool) -> None:
        self._windows.pop(stream, None)
        self._answers.pop(stream, None)
        start_s = self._started.pop(stream, None)
        if start_s is not None:
            self.on_answer(self, start_s, is_ok)
            self._next_waiting()

    def _next_waiting(self) -> None:
        if self._waiting and not self._is_lost:
            self.call(self._waiting.popleft())


async def connect(request: Request) -> Connection:
    """Connect, and have one call answered before anything is timed.

    Raises:
        OSError: nobody answers there, or not rightly.
    """
    host, _, port = request.address.rpartition(":")
    loop = asyncio.get_running_loop()
    first: asyncio.Future[bool] = loop.create_future()
    _, connection = await loop.create_connection(
        lambda: Connection(request, lambda _, __, is_ok: first.set_result(is_ok)),
        host.strip("[]"),
        int(port),
        ssl=_trusting_context() if request.tls else None,
    )
    connection.call(perf_counter())
    if not await asyncio.wait_for(first, _CONNECT_TIMEOUT_S):
        raise ConnectionError(f"{request.address} fails on {request.path}")
    return connection


def _trusting_context() -> ssl.SSLContext:
    """Make a context that takes any certificate: what is measured is a server of ours."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context
