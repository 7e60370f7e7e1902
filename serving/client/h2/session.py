"""A client's HTTP/2 and gRPC without I/O: calls and bytes go in, bytes and outcomes come out.

The only module of the client that imports ngh2.
"""

import math
from collections.abc import Iterable
from contextlib import suppress
from urllib.parse import unquote

import grpc
import ngh2

from serving.client.calls import PUSHBACK, Failure

_MAX_ANSWER_BYTES = 16 << 20
"""The longest message that is taken, as on grpcio."""
_WINDOW = 1 << 30
"""What a server may send ahead; an answer is bounded by `_MAX_ANSWER_BYTES`."""
_LAST_STREAM = 2**31 - 1 - 2 * 65_536
"""Past it no calls are begun: the protocol has no more numbers soon."""
_MAX_HEADERS = 256
"""Headers that are kept, by path, timeout and metadata."""
_PREFIX_BYTES = 5
_CODES = {code.value[0]: code for code in grpc.StatusCode}
_HTTP = {
    b"400": grpc.StatusCode.INTERNAL, b"401": grpc.StatusCode.UNAUTHENTICATED,
    b"403": grpc.StatusCode.PERMISSION_DENIED, b"404": grpc.StatusCode.UNIMPLEMENTED,
    b"429": grpc.StatusCode.UNAVAILABLE, b"502": grpc.StatusCode.UNAVAILABLE,
    b"503": grpc.StatusCode.UNAVAILABLE, b"504": grpc.StatusCode.UNAVAILABLE,
}  # fmt: skip
"""By gRPC's table for answers that are not gRPC's (http-grpc-status-mapping.md)."""
_RESETS = {
    int(ngh2.ErrorCode.REFUSED_STREAM): grpc.StatusCode.UNAVAILABLE,
    int(ngh2.ErrorCode.CANCEL): grpc.StatusCode.CANCELLED,
    int(ngh2.ErrorCode.ENHANCE_YOUR_CALM): grpc.StatusCode.RESOURCE_EXHAUSTED,
}
_CONFIGURATION = ngh2.Configuration(max_inbound_header_count=256)


Metadata = tuple[tuple[str, str], ...]


class Call:
    """A unary call in flight."""

    __slots__ = ("failure", "message", "outcome", "stream")

    def __init__(self) -> None:
        """Make a call that has not begun."""
        self.stream = 0
        self.message = b""
        """What came of the answer, with its prefix."""
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
        self._http2 = ngh2.Connection(ngh2.Role.CLIENT, _CONFIGURATION)
        self._http2.initiate_connection(
            {ngh2.Setting.ENABLE_PUSH: 0, ngh2.Setting.INITIAL_WINDOW_SIZE: _WINDOW}
        )
        self._http2.set_local_window_size(_WINDOW)
        self._first = (
            (b":method", b"POST"),
            (b":scheme", scheme.encode()),
            (b":authority", authority.encode()),
        )
        self._headers: dict[object, tuple[tuple[bytes, bytes], ...]] = {}
        self._calls: dict[int, Call] = {}
        self.is_ending = False
        """Whether no further calls may begin; those in flight are still answered."""
        self._ready = b""

    @property
    def num_calls(self) -> int:
        """How many calls wait for their outcome."""
        return len(self._calls)

    def data_to_send(self) -> bytes:
        """Return the bytes that are ready to be sent."""
        ready, self._ready = self._ready, b""
        return ready + self._http2.data_to_send()

    def start(
        self, call: Call, path: str, message: bytes, timeout_s: float, metadata: Metadata
    ) -> None:
        """Begin a call."""
        http2 = self._http2
        call.stream = stream = http2.send_request(self._headers_of(path, timeout_s, metadata))
        http2.send_data(stream, b"\0" + len(message).to_bytes(4, "big") + message, end_stream=True)
        self._calls[stream] = call
        if stream > _LAST_STREAM:
            self.is_ending = True

    def _headers_of(
        self, path: str, timeout_s: float, metadata: Metadata
    ) -> tuple[tuple[bytes, bytes], ...]:
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
            with suppress(ngh2.NGH2Error):  # the connection is at its end
                self._http2.reset_stream(call.stream)

    def ping(self) -> None:
        """Ask the server for a sign of life."""
        with suppress(ngh2.NGH2Error):
            self._http2.ping()

    def receive(self, data: bytes) -> list[Call]:
        """Take what the server has sent.

        Returns:
            The calls that have their outcome now.

        Raises:
            ngh2.NGH2Error: the server breaks the protocol.
        """
        ended = []
        self._http2.receive_data(data)
        for event in self._http2.events():
            kind = type(event)
            if kind is ngh2.GoAwayReceived:
                self.is_ending = True
                continue
            call = self._calls.get(getattr(event, "stream_id", 0))
            if call is None:
                continue
            if kind is ngh2.DataReceived:
                self._take(call, event.data)  # type: ignore[attr-defined]
            elif kind is ngh2.ResponseReceived or kind is ngh2.TrailersReceived:
                _read_headers(call, event.headers, kind is ngh2.ResponseReceived)  # type: ignore[attr-defined]
            elif kind is ngh2.StreamClosed:
                del self._calls[call.stream]
                call.outcome = _outcome(call, event.error_code)  # type: ignore[attr-defined]
                ended.append(call)
        self._ready += self._http2.data_to_send()
        if not self._http2.want_read:
            ended += self.fail_all((grpc.StatusCode.UNAVAILABLE, "the HTTP/2 connection broke"))
        return ended

    def fail_all(self, failure: Failure) -> list[Call]:
        """End all calls; the connection is lost."""
        self.is_ending = True
        calls = list(self._calls.values())
        self._calls.clear()
        for call in calls:
            call.outcome = failure
        return calls

    def _take(self, call: Call, data: bytes) -> None:
        call.message = call.message + data if call.message else data
        if len(call.message) > _MAX_ANSWER_BYTES + _PREFIX_BYTES:
            text = f"the answer has more than {_MAX_ANSWER_BYTES} bytes"
            call.failure, call.message = (grpc.StatusCode.RESOURCE_EXHAUSTED, text), b""
            self._http2.reset_stream(call.stream)


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


def _read_headers(call: Call, headers: Iterable[tuple[bytes, bytes]], is_first: bool) -> None:
    """Read a status from the headers or the trailers of an answer."""
    fields = dict(headers)
    if is_first and fields.get(b":status") != b"200":
        status = fields.get(b":status", b"")
        code = _HTTP.get(status, grpc.StatusCode.UNKNOWN)
        call.failure = code, f"the answer has HTTP status {status.decode('ascii', 'replace')}", True
    elif (number := fields.get(b"grpc-status")) is not None:
        text = unquote(fields.get(b"grpc-message", b"").decode("utf-8", "replace"))
        code = _CODES.get(int(number) if number.isdigit() else -1, grpc.StatusCode.UNKNOWN)
        call.failure = code, text, PUSHBACK.encode() not in fields
    elif not is_first:
        call.failure = grpc.StatusCode.UNKNOWN, "the answer has no status"


def _outcome(call: Call, reset: int) -> bytes | Failure:
    """Return the outcome of a call whose stream has ended."""
    failure, message = call.failure, call.message
    if failure is None:
        code = _RESETS.get(reset, grpc.StatusCode.INTERNAL)
        return code, f"the server reset the call (HTTP/2 error {reset})"
    if failure[0] is not grpc.StatusCode.OK:
        return failure
    if message[:1] != b"\0" or int.from_bytes(message[1:5], "big") != len(message) - _PREFIX_BYTES:
        return grpc.StatusCode.INTERNAL, "the answer is not one message without compression"
    return message[_PREFIX_BYTES:]
