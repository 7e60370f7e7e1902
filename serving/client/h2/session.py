"""A client's gRPC without I/O: calls and bytes go in, bytes and outcomes come out."""

import math
import os
import ssl
import time
from collections import deque
from functools import lru_cache
from urllib.parse import unquote

from serving.client import transport
from serving.client.failures import trailers_failure
from serving.client.transport import Metadata, Outcome
from serving.http2 import ErrorCode, Limits, events
from serving.http2.client import ClientConnection
from serving.http2.hpack import Fields
from serving.protocols.status import Failure, StatusCode
from serving.security.tls_probe import PLAINTEXT_SERVER, is_plaintext

CONNECT_S = 5.0
"""How long an attempt to connect may take."""
_LIMITS = Limits(stream_window_bytes=1 << 30, max_frame_bytes=1 << 20)
"""Bytes that a server may send ahead; an answer is bounded by `MAX_ANSWER_BYTES`."""
STREAMS = Limits(stream_window_bytes=1 << 20, max_frame_bytes=1 << 20)
"""The same of a connection for calls that many messages answer, which their reader takes in time
of his own."""
_LAST_STREAM = (2**31 - 1 - 2 * 65_536).to_bytes(4, "big")
"""Past it no calls are begun: the protocol has no more numbers soon."""
_MAX_HEADERS = 256
"""Headers that are kept, by path, timeout and metadata."""
_PREFIX_BYTES = 5
_MAX_TIMEOUT_MS = 1 << 62
"""More than `grpc-timeout` can say, and less than infinity."""
_CODES = {b"%d" % code: code for code in StatusCode}
_HTTP = {
    b"400": StatusCode.INTERNAL, b"401": StatusCode.UNAUTHENTICATED,
    b"403": StatusCode.PERMISSION_DENIED, b"404": StatusCode.UNAVAILABLE,
    b"429": StatusCode.UNAVAILABLE, b"502": StatusCode.UNAVAILABLE,
    b"503": StatusCode.UNAVAILABLE, b"504": StatusCode.UNAVAILABLE,
}  # fmt: skip
"""By gRPC's table for answers that are not gRPC's (http-grpc-status-mapping.md), but 404: another
server is there, which lacks more than a method."""
_RESETS: dict[int | None, StatusCode] = {
    ErrorCode.REFUSED_STREAM: StatusCode.UNAVAILABLE,
    ErrorCode.CANCEL: StatusCode.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: StatusCode.RESOURCE_EXHAUSTED,
}

_VOLATILE = frozenset(
    (b"grpc-timeout", b"grpc-message", b"x-request-id", b"traceparent", b"tracestate")
)
"""Metadata whose values change from call to call."""
_GONE = Failure(StatusCode.UNAVAILABLE, "the server takes no more calls on this connection")


class Messages:
    """The messages that answer a call, as they come, and the end behind them."""

    def __init__(self) -> None:
        self.came: deque[Outcome] = deque()
        self._data = bytearray()
        """The start of a message that has not come whole."""
        self._owed = 0
        """Bytes that the server is not yet let send again: those of messages that wait."""

    def owed(self, num_bytes: float = math.inf) -> int:
        """Return how many bytes the server may send more, once: all if no message waits.

        Args:
            num_bytes: those of the message that was taken.
        """
        number = min(self._owed, num_bytes + _PREFIX_BYTES) if self.came else self._owed
        self._owed -= int(number)
        return int(number)

    def feed(self, data: bytes) -> Failure | None:
        """Take data; return why the call is to be ended, if it is."""
        self._data += data
        self._owed += len(data)
        while len(self._data) >= _PREFIX_BYTES:
            size = int.from_bytes(self._data[1:_PREFIX_BYTES], "big")
            if self._data[0]:
                return Failure(StatusCode.INTERNAL, "the answer is compressed")
            if size > transport.MAX_ANSWER_BYTES:
                return transport.too_long()
            end = _PREFIX_BYTES + size
            if len(self._data) < end:
                break
            self.came.append(bytes(memoryview(self._data)[_PREFIX_BYTES:end]))
            del self._data[:end]
        return None

    def end(self, failure: Failure | None) -> Failure:
        """Return how the call has ended, by its status."""
        if failure is None:
            return Failure(StatusCode.UNKNOWN, "the answer has no status")
        if failure.code is StatusCode.OK and self._data:
            return Failure(StatusCode.INTERNAL, "the last message of the answer is cut off")
        return failure


class ClientCall:
    """A call in flight, of one answer or, if it has `Messages`, of any number."""

    messages: Messages | None

    __slots__ = (
        "deadline_s",
        "failure",
        "messages",
        "num_bytes",
        "outcome",
        "parts",
        "stream",
    )

    def __init__(self, deadline_s: float, messages: Messages | None = None) -> None:
        """Make a call that has not begun; its deadline is on the monotonic clock."""
        self.deadline_s, self.messages = deadline_s, messages
        self.stream = b""
        self.parts: list[bytes] = []
        """The parts of the answer so far, with its prefix; joined once."""
        self.num_bytes = 0
        self.failure: Failure | None = None
        """The status in its headers, before the stream has ended."""
        self.outcome: Outcome | None = None
        """The answer or the reason why there is none, once it is known."""

    def end(self, outcome: Outcome) -> None:
        """Take the outcome."""
        self.outcome = outcome

    def note_message(self) -> None:
        """Take note that messages have come."""


class Keepalive:
    """The time since the first call that nothing was heard after; outlasts calls that time out."""

    def __init__(self) -> None:
        self._since_s = math.inf
        self._pinged_s: float | None = None
        self._time_s = transport.KEEPALIVE_TIME_S

    def begin(self, now_s: float) -> None:
        """Note that a call was sent."""
        if self._since_s == math.inf:
            self._since_s = now_s

    def end(self, now_s: float, num_calls: int) -> None:
        """Note that the server has sent something.

        One that answers pings and no calls is asked half as often each time: gRPC's own servers
        close a connection after four pings without data.

        Args:
            now_s: the time.
            num_calls: how many calls still wait for their outcome.
        """
        self._since_s = now_s if num_calls else math.inf
        self._time_s = transport.KEEPALIVE_TIME_S if self._pinged_s is None else 2 * self._time_s
        self._pinged_s = None

    def due_s(self) -> float:
        """Return when to ping the server, or when to give it up."""
        if self._pinged_s is not None:
            return self._pinged_s + transport.KEEPALIVE_TIMEOUT_S
        return self._since_s + self._time_s

    def should_ping(self, now_s: float) -> bool:
        """Return whether to ping the server now, which counts as done."""
        is_due = self._pinged_s is None and now_s >= self.due_s()
        if is_due:
            self._pinged_s = now_s
        return is_due

    def is_dead(self, now_s: float) -> bool:
        """Return whether the server did not even answer that."""
        return self._pinged_s is not None and now_s >= self.due_s()


class Session:
    """One connection's calls. Not safe to share between threads."""

    def __init__(self, authority: str, scheme: str, limits: Limits | None = None) -> None:
        """Begin a connection; its first bytes are ready to be sent.

        Args:
            authority: "host:port".
            scheme: "http" or "https".
            limits: what a server may send ahead; None for calls of one answer.
        """
        self._http2 = ClientConnection(limits or _LIMITS, _VOLATILE)
        self._first = (
            (b":method", b"POST"),
            (b":scheme", scheme.encode()),
            (b":authority", authority.encode()),
        )
        self._headers: dict[tuple[str, bytes, Metadata], Fields] = {}
        self.calls: dict[bytes, ClientCall] = {}
        """Calls that wait for their outcome, by stream."""
        self.keepalive = Keepalive()
        self.failure: Failure | None = None
        """Why no further calls may begin; those in flight may still be answered."""
        self.data_to_send = self._http2.data_to_send

    def start(self, call: ClientCall, path: str, message: bytes, metadata: Metadata) -> None:
        """Begin a call; on a connection that is ending it has its outcome at once."""
        if self.failure is not None:
            call.end(self.failure)
            return
        now_s = time.monotonic()
        timeout_ms = min((call.deadline_s - now_s) * 1e3, _MAX_TIMEOUT_MS)
        key = path, _timeout_text(math.ceil(timeout_ms)), metadata
        headers = self._headers.get(key) or self._make_headers(*key)
        framed = b"\0%b%b" % (len(message).to_bytes(4, "big"), message)
        call.stream = stream = self._http2.request(headers, framed)
        self.calls[stream] = call
        self.keepalive.begin(now_s)
        if stream > _LAST_STREAM:
            self.failure = _GONE

    def _make_headers(self, path: str, timeout: bytes, metadata: Metadata) -> Fields:
        if len(self._headers) == _MAX_HEADERS:
            self._headers.clear()
        headers = self._headers[path, timeout, metadata] = (
            *self._first,
            (b":path", path.encode()),
            (b"grpc-timeout", timeout),
            (b"te", b"trailers"),
            (b"content-type", b"application/grpc"),
            *((name.encode(), text.encode()) for name, text in metadata),
        )
        return headers

    def cancel(self, call: ClientCall) -> None:
        """Reset a call's stream, if it is in flight."""
        if self.calls.pop(call.stream, None) is call:
            self._http2.cancel(call.stream)

    def is_alive(self) -> bool:
        """Ping a server that is silent; return False if it did not answer that either."""
        now_s = time.monotonic()
        if self.keepalive.should_ping(now_s):
            self._http2.ping()
        return not self.keepalive.is_dead(now_s)

    def receive(self, data: bytes) -> None:
        """Process bytes from the server.

        Raises:
            Http2Error: the server breaks the protocol.
        """
        now_s = time.monotonic()
        for event in self._http2.receive(data, now_s):
            if isinstance(event, events.GoAway):
                self.failure = _GONE
                self._end_unread(event.last_stream)
            elif not isinstance(event, events.CallsReceived):  # of servers alone
                call = self.calls.get(event.stream)
                if call is None:
                    continue
                if self._take(call, event):
                    del self.calls[event.stream]
                    call.end(_outcome(call))
                elif call.messages is not None and call.messages.came:
                    call.note_message()
        self.keepalive.end(now_s, len(self.calls))

    def _take(self, call: ClientCall, event: events.Event) -> bool:
        """Process an event of a call; return whether the call has ended."""
        match event:
            case events.DataReceived():
                return self._take_data(call, event.data) or event.is_end
            case events.HeadersReceived():
                call.failure = _status_in(event.block.fields) or call.failure
                return event.is_end
            case events.TrailersReceived():
                call.failure = _status_in(event.fields) or call.failure
            case events.StreamReset() if call.failure is None:
                code = _RESETS.get(event.code, StatusCode.INTERNAL)
                reason = "OVERLOADED" if code is StatusCode.RESOURCE_EXHAUSTED else ""
                text = f"the server reset the call (HTTP/2 error {event.code:d})"
                call.failure = Failure(code, text, reason=reason)
        return True

    def take_message(self, call: ClientCall) -> Outcome | None:
        """Take a call's next message, or its end; None if nothing has come."""
        messages = call.messages
        if messages is None or not messages.came:
            return None
        message = messages.came.popleft()
        if isinstance(message, bytes):
            self._http2.acknowledge(call.stream, messages.owed(len(message)))
        return message

    def _take_data(self, call: ClientCall, data: bytes) -> bool:
        """Take a part of an answer; return whether it is too long, which ends the call."""
        if call.messages is not None:
            failure = call.messages.feed(data)
            if failure is None:
                if not call.messages.came:  # of one that is longer than the window, perhaps
                    self._http2.acknowledge(call.stream, call.messages.owed())
                return False
            call.failure = failure
            self._http2.reset(call.stream, ErrorCode.CANCEL)
            return True
        is_first = not call.parts
        call.parts.append(data)
        call.num_bytes += len(data)
        self._http2.acknowledge(call.stream, len(data))
        num_bytes = call.num_bytes - _PREFIX_BYTES
        if is_first and num_bytes >= 0:  # the prefix says it before it comes
            num_bytes = max(num_bytes, int.from_bytes(data[1:_PREFIX_BYTES], "big"))
        if num_bytes <= transport.MAX_ANSWER_BYTES:
            return False
        call.failure = transport.too_long()
        self._http2.reset(call.stream, ErrorCode.CANCEL)
        return True

    def _end_unread(self, last: bytes) -> None:
        """End the calls that a server that goes has not looked at."""
        for call in [call for stream, call in self.calls.items() if stream > last]:
            self.cancel(call)
            call.end(_GONE)

    def fail_all(self, failure: Failure) -> None:
        """End all calls; the connection is lost. The first reason of several stays."""
        if self.failure in (None, _GONE):
            self.failure = failure
        calls, self.calls = self.calls, {}
        for call in calls.values():
            call.end(failure)


def failure_of(error: OSError) -> Failure:
    """Return the status of a connection that failed."""
    if isinstance(error, TimeoutError):
        return Failure(StatusCode.UNAVAILABLE, "no answer to the attempt to connect")
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        text = f"TLS handshake failed: {error.strerror or error.args[0]}"
        text = PLAINTEXT_SERVER if is_plaintext(error) else text
        return Failure(StatusCode.UNAVAILABLE, text, is_permanent=True)
    # asyncio has texts of its own; numbers of names are negative, and those of TLS are OpenSSL's.
    number = 0 if isinstance(error, ssl.SSLError) else error.errno or 0
    reason = os.strerror(number) if number > 0 else error.strerror or error
    return Failure(StatusCode.UNAVAILABLE, f"can't connect: {reason}")


@lru_cache(maxsize=1024)
def _timeout_text(milliseconds: int) -> bytes:
    """Write a `grpc-timeout`, at most a tenth longer: equal headers are understood once.

    The client keeps the exact deadline itself.
    """
    milliseconds = max(1, milliseconds)
    step = 10 ** max(0, len(str(milliseconds)) - 2)
    milliseconds = -(-milliseconds // step) * step
    if milliseconds < 10**8:
        return b"%dm" % milliseconds
    return b"%dH" % min(10**8 - 1, -(-milliseconds // 3_600_000))


@lru_cache(maxsize=256)
def _status_in(headers: Fields) -> Failure | None:
    """Return the status that the headers or the trailers of an answer say; None without one."""
    fields = dict(headers)
    status = fields.get(b":status", b"200")
    if status != b"200":
        text = f"the answer has HTTP status {status.decode('ascii', 'replace')}"
        code, is_other = _HTTP.get(status, StatusCode.UNKNOWN), status == b"404"
        return Failure(code, text, is_answer=True, is_permanent=is_other)
    if (number := fields.get(b"grpc-status")) is None:
        return None
    text = unquote(fields.get(b"grpc-message", b"").decode("utf-8", "replace"))
    trailers = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in headers]
    return trailers_failure(_CODES.get(number, StatusCode.UNKNOWN), text, trailers)


def _outcome(call: ClientCall) -> Outcome:
    if call.messages is not None:
        return call.messages.end(call.failure)
    if call.failure is None:
        return Failure(StatusCode.UNKNOWN, "the answer has no status")
    if call.failure.code is not StatusCode.OK:
        return call.failure
    first, *rest = call.parts or [b""]
    if len(first) < _PREFIX_BYTES:
        first, rest = b"".join(call.parts), []
    message = b"".join((first[_PREFIX_BYTES:], *rest))
    if first[:_PREFIX_BYTES] != b"\0" + len(message).to_bytes(4, "big"):
        return Failure(StatusCode.INTERNAL, "the answer is not one message without compression")
    return message
