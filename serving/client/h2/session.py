"""A client's gRPC without I/O: calls and bytes go in, bytes and outcomes come out."""

import math
import time
from urllib.parse import unquote

import grpc

from serving.client.calls import PUSHBACK, Failure
from serving.http2 import events
from serving.http2.client import ClientConnection
from serving.http2.frames import ErrorCode
from serving.http2.hpack.table import Fields
from serving.http2.limits import Limits

_MAX_ANSWER_BYTES = 16 << 20
"""The longest message that is taken, as on grpcio."""
_LIMITS = Limits(stream_window_bytes=1 << 30, max_frame_bytes=1 << 20)
"""What a server may send ahead; an answer is bounded by `_MAX_ANSWER_BYTES`."""
_LAST_STREAM = (2**31 - 1 - 2 * 65_536).to_bytes(4, "big")
"""Past it no calls are begun: the protocol has no more numbers soon."""
_MAX_HEADERS = 256
"""Headers that are kept, by path, timeout and metadata."""
_PREFIX_BYTES = 5
_MAX_STATUS_DIGITS = 4
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_HTTP = {
    b"400": grpc.StatusCode.INTERNAL, b"401": grpc.StatusCode.UNAUTHENTICATED,
    b"403": grpc.StatusCode.PERMISSION_DENIED, b"404": grpc.StatusCode.UNIMPLEMENTED,
    b"429": grpc.StatusCode.UNAVAILABLE, b"502": grpc.StatusCode.UNAVAILABLE,
    b"503": grpc.StatusCode.UNAVAILABLE, b"504": grpc.StatusCode.UNAVAILABLE,
}  # fmt: skip
"""By gRPC's table for answers that are not gRPC's (http-grpc-status-mapping.md)."""
_RESETS: dict[int | None, grpc.StatusCode] = {
    ErrorCode.REFUSED_STREAM: grpc.StatusCode.UNAVAILABLE,
    ErrorCode.CANCEL: grpc.StatusCode.CANCELLED,
    ErrorCode.ENHANCE_YOUR_CALM: grpc.StatusCode.RESOURCE_EXHAUSTED,
}

_GONE: Failure = (grpc.StatusCode.UNAVAILABLE, "the server takes no more calls on this connection")

Metadata = tuple[tuple[str, str], ...]


class Call:
    """A unary call in flight."""

    __slots__ = ("failure", "message", "num_bytes", "outcome", "stream")

    def __init__(self) -> None:
        """Make a call that has not begun."""
        self.stream = b""
        self.message: list[bytes] = []
        """What came of the answer, with its prefix."""
        self.num_bytes = 0
        self.failure: Failure | None = None
        """What its headers say, before the stream has ended."""
        self.outcome: bytes | Failure | None = None
        """The answer or the reason why there is none, once it is known."""


class Session:
    """One connection's calls. Not safe to share between threads."""

    def __init__(self, authority: str, scheme: str) -> None:
        """Begin a connection; its first bytes are ready to be sent.

        Args:
            authority: "host:port".
            scheme: "http" or "https".
        """
        self._http2 = ClientConnection(_LIMITS)
        self._first = (
            (b":method", b"POST"),
            (b":scheme", scheme.encode()),
            (b":authority", authority.encode()),
        )
        self._headers: dict[object, Fields] = {}
        self._calls: dict[bytes, Call] = {}
        self.is_ending = False
        """Whether no further calls may begin; those in flight are still answered."""
        self._failure = _GONE
        """Why they may not."""

    @property
    def num_calls(self) -> int:
        """How many calls wait for their outcome."""
        return len(self._calls)

    def data_to_send(self) -> bytes:
        """Return the bytes that are ready to be sent."""
        return self._http2.data_to_send()

    def start(
        self, call: Call, path: str, message: bytes, timeout_s: float, metadata: Metadata
    ) -> None:
        """Begin a call; on a connection that is ending it has its outcome at once."""
        if self.is_ending:
            call.outcome = self._failure
            return
        headers = self._headers_of(path, timeout_s, metadata)
        framed = b"\0" + len(message).to_bytes(4, "big") + message
        call.stream = stream = self._http2.request(headers, framed)
        self._calls[stream] = call
        if stream > _LAST_STREAM:
            self.is_ending = True

    def _headers_of(self, path: str, timeout_s: float, metadata: Metadata) -> Fields:
        timeout = _timeout_text(timeout_s)
        key = path, timeout, metadata
        headers = self._headers.get(key)
        if headers is None:
            if len(self._headers) == _MAX_HEADERS:
                self._headers.clear()
            headers = self._headers[key] = (
                *self._first,
                (b":path", path.encode()),
                (b"grpc-timeout", timeout),
                (b"te", b"trailers"),
                (b"content-type", b"application/grpc"),
                *((name.encode(), text.encode()) for name, text in metadata),
            )
        return headers

    def cancel(self, call: Call) -> None:
        """Reset a call's stream, if it is in flight."""
        if self._calls.pop(call.stream, None) is call:
            self._http2.cancel(call.stream)

    def ping(self) -> None:
        """Ask the server for a sign of life."""
        self._http2.ping()

    def receive(self, data: bytes) -> list[Call]:
        """Take what the server has sent.

        Returns:
            The calls that have their outcome now.

        Raises:
            Http2Error: the server breaks the protocol.
        """
        ended = []
        for kind, stream, value, is_end in self._http2.receive(data, time.monotonic()):
            if kind == events.GOAWAY:
                self.is_ending = True
                ended += self._end_unread(stream)
                continue
            call = self._calls.get(stream)
            if call is None:
                continue
            if kind == events.DATA:
                is_end |= self._take(call, value)
            elif kind == events.HEADERS:
                _read_headers(call, value.fields, is_first=True, is_last=is_end)
            elif kind == events.TRAILERS:
                _read_headers(call, value, is_first=False, is_last=True)
            if is_end:
                del self._calls[stream]
                call.outcome = _outcome(call, value[0] if kind == events.RESET else None)
                ended.append(call)
        return ended

    def _end_unread(self, last: bytes) -> list[Call]:
        """End the calls that a server that goes has not looked at."""
        unread = [call for stream, call in self._calls.items() if stream > last]
        for call in unread:
            self.cancel(call)
            call.outcome = _GONE
        return unread

    def fail_all(self, failure: Failure) -> list[Call]:
        """End all calls; the connection is lost."""
        self.is_ending = True
        self._failure = failure
        calls = list(self._calls.values())
        self._calls.clear()
        for call in calls:
            call.outcome = failure
        return calls

    def _take(self, call: Call, data: bytes) -> bool:
        """Take a part of an answer; return whether it is too long, which ends the call."""
        call.message.append(data)
        call.num_bytes += len(data)
        self._http2.acknowledge(call.stream, len(data))
        if call.num_bytes <= _MAX_ANSWER_BYTES + _PREFIX_BYTES:
            return False
        text = f"the answer has more than {_MAX_ANSWER_BYTES} bytes"
        call.failure, call.message = (grpc.StatusCode.RESOURCE_EXHAUSTED, text), []
        self._http2.reset(call.stream, ErrorCode.CANCEL)
        return True


def _timeout_text(timeout_s: float) -> bytes:
    """Write a `grpc-timeout`, at most a tenth longer: equal headers are understood once.

    The client keeps the exact deadline itself.
    """
    milliseconds = max(1, math.ceil(timeout_s * 1e3))
    step = 10 ** max(0, len(str(milliseconds)) - 2)
    milliseconds = -(-milliseconds // step) * step
    if milliseconds < 10**8:
        return b"%dm" % milliseconds
    return b"%dH" % min(10**8 - 1, -(-milliseconds // 3_600_000))


def _read_headers(call: Call, headers: Fields, *, is_first: bool, is_last: bool) -> None:
    """Read a status from the headers or the trailers of an answer."""
    fields = dict(headers)
    if is_first and fields[b":status"] != b"200":
        status = fields[b":status"]
        code = _HTTP.get(status, grpc.StatusCode.UNKNOWN)
        call.failure = code, f"the answer has HTTP status {status.decode('ascii', 'replace')}", True
    elif (number := fields.get(b"grpc-status")) is not None:
        text = unquote(fields.get(b"grpc-message", b"").decode("utf-8", "replace"))
        is_number = number.isdigit() and len(number) <= _MAX_STATUS_DIGITS
        code = _CODES.get(int(number) if is_number else -1, grpc.StatusCode.UNKNOWN)
        call.failure = code, text, PUSHBACK.encode() not in fields
    elif is_last and call.failure is None:
        call.failure = grpc.StatusCode.UNKNOWN, "the answer has no status"


def _outcome(call: Call, reset: int | None) -> bytes | Failure:
    """Return the outcome of a call whose stream has ended, perhaps by a reset."""
    failure = call.failure
    if failure is None and reset is None:
        return grpc.StatusCode.INTERNAL, "the answer has no status"
    if failure is None:
        code = _RESETS.get(reset, grpc.StatusCode.INTERNAL)
        return code, f"the server reset the call (HTTP/2 error {reset:d})"
    if failure[0] is not grpc.StatusCode.OK:
        return failure
    message = call.message[0] if len(call.message) == 1 else b"".join(call.message)
    if message[:1] != b"\0" or int.from_bytes(message[1:5], "big") != len(message) - _PREFIX_BYTES:
        return grpc.StatusCode.INTERNAL, "the answer is not one message without compression"
    return message[_PREFIX_BYTES:]
