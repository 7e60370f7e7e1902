"""Statuses of gRPC as trailers, and errors of messages that can't be read."""

from functools import lru_cache
from urllib.parse import quote

from serving.errors import DeadlineExceeded, Unauthenticated
from serving.protocols.status import Status, StatusCode

Trailers = tuple[tuple[bytes, bytes], ...]

OK: Trailers = ((b"grpc-status", b"0"),)
RESPONSE: Trailers = ((b":status", b"200"), (b"content-type", b"application/grpc"))
"""How every answer begins."""


_SAFE = "".join(chr(code) for code in range(0x20, 0x7F) if chr(code) != "%")


@lru_cache(maxsize=256)  # refusals come by the thousand
def trailers_of(status: Status) -> Trailers:
    """Encode a status other than OK."""
    # Percent-encoded, as gRPC's specification has it: all but printable ASCII, and %. A field of
    # HTTP/2 must not begin or end with a blank (RFC 9113, section 8.2.1).
    message = quote(status.text.strip().encode("utf-8", "replace"), safe=_SAFE)
    fields = {
        "grpc-status": str(status.code), "grpc-message": message, **dict(status.metadata)
    }  # fmt: skip
    return tuple((name.encode(), value.encode()) for name, value in fields.items())


MALFORMED = Status(
    StatusCode.INVALID_ARGUMENT, "expected a gRPC message: a flag of 0 or 1, and a length"
)
TRUNCATED = Status(StatusCode.INVALID_ARGUMENT, "the request ended before its message was whole")
COMPRESSED = Status(
    StatusCode.UNIMPLEMENTED,
    "compressed messages are not accepted",
    (("grpc-accept-encoding", "identity"),),
)
NOT_ONE_MESSAGE = Status(StatusCode.UNIMPLEMENTED, "expected exactly one message in this request")
UNAUTHENTICATED = Status.of(Unauthenticated())
NO_TRAILERS = Status(StatusCode.INVALID_ARGUMENT, "expected the header te: trailers")
BAD_TIMEOUT = Status(
    StatusCode.INVALID_ARGUMENT,
    "expected grpc-timeout as up to 8 digits and one of H, M, S, m, u, n",
)
OUT_OF_MEMORY = Status(StatusCode.RESOURCE_EXHAUSTED, "too many half-received messages")
UNREAD = Status(StatusCode.RESOURCE_EXHAUSTED, "too many answers on this connection are unread")
TOO_SLOW = Status(StatusCode.DEADLINE_EXCEEDED, "the request's message did not arrive in time")
LATE = Status.of(DeadlineExceeded())


def too_long(num_bytes: int, limit: int) -> Status:
    """Return the status of a message that is too long; without a pushback, as no retry helps."""
    return Status(
        StatusCode.RESOURCE_EXHAUSTED,
        f"expected a message of at most {limit} bytes, got {num_bytes}",
    )
