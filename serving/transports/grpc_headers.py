"""A call's headers and trailers: method, timeout, whether its token is valid, and its status."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import quote

from serving.errors import (
    DeadlineExceeded,
    InvalidRequest,
    Overloaded,
    TooLarge,
    Unauthenticated,
    Unsupported,
)
from serving.http2.headers import SharedHeaders
from serving.http2.hpack import Field, Fields
from serving.http2.recogniser import Varying
from serving.protocols.known import Known
from serving.protocols.method import BatchedUnary, Method
from serving.protocols.status import UNKNOWN_METHOD, Status
from serving.telemetry.logs import REQUEST_ID as _REQUEST_ID

if TYPE_CHECKING:
    from serving.security.tokens import TokenCheck

Trailers = tuple[tuple[bytes, bytes], ...]

COUNTING = frozenset((b"content-type", b"authorization", b"grpc-encoding"))
"""Fields whose values `HeaderParser` reads once for all calls that share them."""
VARYING = Varying(
    patterns={b"grpc-timeout": {size: b"[0-9]{%d}[HMSmun]" % (size - 1) for size in range(2, 10)}}
)
"""Fields whose values may differ in calls that are recognised by their bytes."""

OK: Trailers = ((b"grpc-status", b"0"),)
RESPONSE: Trailers = ((b":status", b"200"), (b"content-type", b"application/grpc"))
"""How every answer begins."""
REQUEST_ID = _REQUEST_ID.encode()
_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")
MALFORMED = Status.of(InvalidRequest("expected a gRPC message: a flag of 0 or 1, and a length"))
TRUNCATED = Status.of(InvalidRequest("the request ended before its message was whole"))
GZIP = b"gzip"
"""The compression of messages that is read."""
OTHER_ENCODING = Status.of(
    Unsupported("expected messages without compression, or with gzip"),
    ("grpc-accept-encoding", "identity,gzip"),
)
NOT_ONE_MESSAGE = Status.of(Unsupported("expected exactly one message in this request"))
UNAUTHENTICATED = Status.of(Unauthenticated())
NO_TRAILERS = Status.of(InvalidRequest("expected the header te: trailers"))
BAD_TIMEOUT = Status.of(
    InvalidRequest("expected grpc-timeout as up to 8 digits and one of H, M, S, m, u, n")
)
OUT_OF_MEMORY = Status.of(Overloaded("too many half-received messages"))
UNREAD = Status.of(Overloaded("too many answers on this connection are unread"))
TOO_SLOW = Status.of(DeadlineExceeded("the request's message did not arrive in time"))
LATE = Status.of(DeadlineExceeded())
_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_NONE_KNOWN = Known()
_TEXT = (b"content-type", b"text/plain")


@lru_cache(maxsize=256)  # refusals come by the thousand
def trailers_of(status: Status) -> Trailers:
    """Encode a status other than OK."""
    # Percent-encoded, as gRPC's specification has it: all but printable ASCII, and %. A field of
    # HTTP/2 must not begin or end with a blank (RFC 9113, section 8.2.1).
    message = quote(status.text.strip().encode("utf-8", "replace"), safe=_SAFE)
    fields = {"grpc-status": str(status.code), "grpc-message": message, **dict(status.metadata)}
    return tuple((name.encode(), value.encode()) for name, value in fields.items())


def too_long(num_bytes: int, limit: int) -> Status:
    """Return the status of a message that is too long; without a pushback, as no retry helps."""
    return Status.of(TooLarge(f"expected a message of at most {limit} bytes, got {num_bytes}"))


class NotGrpc(NamedTuple):
    """The answer to an HTTP request that is not a gRPC call."""

    headers: Fields
    text: bytes


NOT_POST = NotGrpc(((b":status", b"405"), _TEXT), b"gRPC calls are POST requests\n")
NOT_GRPC = NotGrpc(((b":status", b"415"), _TEXT), b"expected content-type application/grpc\n")


@dataclass(slots=True, eq=False)
class CallHeaders:
    """The meaning of a call's headers; calls with equal headers share one."""

    method: Method | None
    name: str
    """The method's name in the metrics."""
    known: Known
    """Prefixes of messages that need not be parsed."""
    timeout_s: float
    """How long the call may take; infinite without grpc-timeout."""
    refusal: Status | NotGrpc | None
    """Why the call is refused; None if it is not."""
    trusted: bool
    """Whether the token is valid."""
    is_plain: bool
    """Whether it is an accepted unary call of rows."""
    encoding: bytes = b""
    """How its messages are compressed, if their flags say that they are."""

    def within(self, timeout: bytes) -> "CallHeaders":
        """Return the same with a grpc-timeout."""
        timeout_s, refusal, is_plain = read_timeout_s(timeout), self.refusal, self.is_plain
        if timeout_s < 0:
            timeout_s, refusal, is_plain = 0.0, refusal or BAD_TIMEOUT, False
        return CallHeaders(  # 2 us less than `replace`, which each call with a deadline would pay
            self.method,
            self.name,
            self.known,
            timeout_s,
            refusal,
            self.trusted,
            is_plain,
            self.encoding,
        )


class HeaderParser:
    """Reads headers, and caches their meaning."""

    def __init__(self, methods: Mapping[bytes, Method], tokens: "TokenCheck | None") -> None:
        """Take the methods by path; without `tokens` no call needs one."""
        self.methods = methods
        self.tokens = tokens

    def get(self, block: SharedHeaders) -> CallHeaders:
        """Return the meaning of headers."""
        call_headers: CallHeaders | None = block.kind.call
        if call_headers is None:
            call_headers = block.kind.call = self._read(block.kind.fields)
        for name, value in block.changing:
            if name == b"grpc-timeout":
                call_headers = call_headers.within(value)
        return call_headers

    def _read(self, headers: Sequence[Field]) -> CallHeaders:
        fields = dict(headers)
        method = self.methods.get(fields.get(b":path", b""))
        tokens = [value for name, value in headers if name == b"authorization"]
        trusted = self.tokens is not None and self.tokens.accepts(tokens)
        refusal: Status | NotGrpc | None = None
        if fields.get(b":method") != b"POST":
            refusal = NOT_POST
        elif not _is_grpc(fields.get(b"content-type", b"")):
            refusal = NOT_GRPC
        elif not (self.tokens is None or trusted or (method is not None and method.is_open)):
            refusal = UNAUTHENTICATED
        elif method is None:
            refusal = UNKNOWN_METHOD
        elif fields.get(b"te") != b"trailers":
            refusal = NO_TRAILERS
        name = "other" if method is None else method.name
        known, is_plain = _NONE_KNOWN, False
        if isinstance(method, BatchedUnary):
            known = method.known
            is_plain = refusal is None and method.takes_one
        if refusal is UNAUTHENTICATED:
            name = "unauthenticated"
        encoding = fields.get(b"grpc-encoding", b"")
        call_headers = CallHeaders(
            method, name, known, math.inf, refusal, trusted, is_plain, encoding
        )
        timeout = fields.get(b"grpc-timeout")
        return call_headers if timeout is None else call_headers.within(timeout)


def _is_grpc(content_type: bytes) -> bool:
    kind = content_type.partition(b";")[0].strip().lower()
    return kind in (b"application/grpc", b"application/grpc+proto")


def read_timeout_s(value: bytes) -> float:
    """Read a grpc-timeout; less than 0 if it is malformed."""
    number, unit_s = value[:-1], _UNITS_S.get(value[-1:])
    if unit_s is None or len(number) > 8 or not number.isdigit():
        return -1.0
    return int(number) * unit_s
