"""How a call ends without an answer: gRPC's statuses, as trailers."""

from functools import lru_cache
from typing import NamedTuple, Self
from urllib.parse import quote

import grpc

from serving.errors import DigitsError, Overloaded
from serving.protocols.status import RETRY_AFTER_MS, STATUS

Trailers = tuple[tuple[bytes, bytes], ...]

OK: Trailers = ((b"grpc-status", b"0"),)


_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


class Status(NamedTuple):
    """A status that is not OK."""

    name: str
    """Its name in the metrics, such as "INVALID_ARGUMENT"."""
    trailers: Trailers

    @classmethod
    def of(cls, error: DigitsError) -> Self:
        """Give the status of one of our errors, with its text."""
        if isinstance(error, Overloaded):
            pushback = (b"grpc-retry-pushback-ms", b"%d" % RETRY_AFTER_MS)
            return cls.new(STATUS[Overloaded], str(error), pushback)
        return cls.new(STATUS[type(error)], str(error))

    @classmethod
    def new(cls, code: grpc.StatusCode, text: str, *more: tuple[bytes, bytes]) -> Self:
        """Make a status of its code and text."""
        return cls(code.name, (*_trailers(code, text), *more))


@lru_cache(maxsize=256)  # who refuses one call often refuses a thousand
def _trailers(code: grpc.StatusCode, text: str) -> Trailers:
    number: int = code.value[0]
    # Percent-encoded, as gRPC's specification has it: all but printable ASCII, and %.
    message = quote(text.encode("utf-8", "replace"), safe=_SAFE).encode()
    return ((b"grpc-status", b"%d" % number), (b"grpc-message", message))


MALFORMED = Status.new(
    grpc.StatusCode.INVALID_ARGUMENT, "expected a gRPC message: a flag of 0 or 1, and a length"
)
TRUNCATED = Status.new(
    grpc.StatusCode.INVALID_ARGUMENT, "the request ended before its message was whole"
)
COMPRESSED = Status.new(
    grpc.StatusCode.UNIMPLEMENTED,
    "compressed messages are not accepted",
    (b"grpc-accept-encoding", b"identity"),
)
NOT_ONE_MESSAGE = Status.new(
    grpc.StatusCode.UNIMPLEMENTED, "expected exactly one message in this request"
)
UNKNOWN_METHOD = Status.new(grpc.StatusCode.UNIMPLEMENTED, "no such method")
UNAUTHENTICATED = Status.new(grpc.StatusCode.UNAUTHENTICATED, "a valid bearer token is needed")
NO_TRAILERS = Status.new(grpc.StatusCode.INVALID_ARGUMENT, "expected the header te: trailers")
BAD_TIMEOUT = Status.new(
    grpc.StatusCode.INVALID_ARGUMENT,
    "expected grpc-timeout as up to 8 digits and one of H, M, S, m, u, n",
)
OUT_OF_MEMORY = Status.new(grpc.StatusCode.RESOURCE_EXHAUSTED, "too many half-received messages")
UNREAD = Status.new(
    grpc.StatusCode.RESOURCE_EXHAUSTED, "too many answers on this connection are unread"
)
TOO_SLOW = Status.new(
    grpc.StatusCode.DEADLINE_EXCEEDED, "the request's message did not arrive in time"
)
LATE = Status.new(grpc.StatusCode.DEADLINE_EXCEEDED, "the deadline passed while the request waited")


def too_long(num_bytes: int, limit: int) -> Status:
    """Refuse a message for its length; trying again helps nobody, so without a pause to wait."""
    return Status.new(
        grpc.StatusCode.RESOURCE_EXHAUSTED,
        f"expected a message of at most {limit} bytes, got {num_bytes}",
    )
