"""Statuses of gRPC as trailers, and errors of messages that can't be read."""

from functools import lru_cache
from typing import NamedTuple
from urllib.parse import quote

from serving.errors import DeadlineExceeded, DigitsError, Unauthenticated
from serving.protocols import status
from serving.protocols.status import StatusCode

PREFIX_BYTES = 5
"""The length of the prefix of each message: whether it is compressed, and its length."""

Trailers = tuple[tuple[bytes, bytes], ...]

OK: Trailers = ((b"grpc-status", b"0"),)
RESPONSE: Trailers = ((b":status", b"200"), (b"content-type", b"application/grpc"))
"""How every answer begins."""


_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


class Status(NamedTuple):
    """A status other than OK, encoded."""

    name: str
    """Its name in the metrics, such as "INVALID_ARGUMENT"."""
    trailers: Trailers

    @classmethod
    def of(cls, error: DigitsError) -> "Status":
        """Return the status of one of our errors, with its text."""
        return _encode(status.Status.of(error))


@lru_cache(maxsize=256)  # refusals come by the thousand
def _encode(ending: status.Status) -> Status:
    # Percent-encoded, as gRPC's specification has it: all but printable ASCII, and %. A field of
    # HTTP/2 must not begin or end with a blank (RFC 9113, section 8.2.1).
    message = quote(ending.text.strip().encode("utf-8", "replace"), safe=_SAFE)
    trailers = {
        "grpc-status": str(ending.code),
        "grpc-message": message,
        **dict(ending.metadata),
    }
    encoded = tuple((name.encode(), value.encode()) for name, value in trailers.items())
    return Status(ending.code.name, encoded)


def _status(code: StatusCode, text: str, *metadata: tuple[str, str]) -> Status:
    return _encode(status.Status(code, text, metadata))


MALFORMED = _status(
    StatusCode.INVALID_ARGUMENT, "expected a gRPC message: a flag of 0 or 1, and a length"
)
TRUNCATED = _status(StatusCode.INVALID_ARGUMENT, "the request ended before its message was whole")
COMPRESSED = _status(
    StatusCode.UNIMPLEMENTED,
    "compressed messages are not accepted",
    ("grpc-accept-encoding", "identity"),
)
NOT_ONE_MESSAGE = _status(StatusCode.UNIMPLEMENTED, "expected exactly one message in this request")
UNKNOWN_METHOD = _encode(status.UNKNOWN_METHOD)
UNAUTHENTICATED = Status.of(Unauthenticated())
NO_TRAILERS = _status(StatusCode.INVALID_ARGUMENT, "expected the header te: trailers")
BAD_TIMEOUT = _status(
    StatusCode.INVALID_ARGUMENT,
    "expected grpc-timeout as up to 8 digits and one of H, M, S, m, u, n",
)
OUT_OF_MEMORY = _status(StatusCode.RESOURCE_EXHAUSTED, "too many half-received messages")
UNREAD = _status(StatusCode.RESOURCE_EXHAUSTED, "too many answers on this connection are unread")
TOO_SLOW = _status(StatusCode.DEADLINE_EXCEEDED, "the request's message did not arrive in time")
LATE = Status.of(DeadlineExceeded())


def too_long(num_bytes: int, limit: int) -> Status:
    """Return the status of a message that is too long; without a pushback, as no retry helps."""
    return _status(
        StatusCode.RESOURCE_EXHAUSTED,
        f"expected a message of at most {limit} bytes, got {num_bytes}",
    )
