"""The table between our errors and gRPC's status codes, for server and client."""

import logging
from enum import IntEnum
from typing import NamedTuple, Self

from serving import errors

_log = logging.getLogger(__name__)


class StatusCode(IntEnum):
    """gRPC's status codes (grpc/doc/statuscodes.md); `import grpc` would take 30 ms of a start."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


STATUS: dict[type[errors.ServingError], StatusCode] = {
    errors.InvalidRequest: StatusCode.INVALID_ARGUMENT,
    errors.TooLarge: StatusCode.INVALID_ARGUMENT,
    errors.Unsupported: StatusCode.UNIMPLEMENTED,
    errors.ModelNotFound: StatusCode.NOT_FOUND,
    errors.Unauthenticated: StatusCode.UNAUTHENTICATED,
    errors.Overloaded: StatusCode.RESOURCE_EXHAUSTED,
    errors.Unavailable: StatusCode.UNAVAILABLE,
    errors.DeadlineExceeded: StatusCode.DEADLINE_EXCEEDED,
    errors.ModelError: StatusCode.INTERNAL,
    # These end the start of a server; none reaches a caller.
    errors.CorruptModel: StatusCode.INTERNAL,
    errors.DeviceError: StatusCode.INTERNAL,
    errors.ConfigurationError: StatusCode.INTERNAL,
}

RETRY_AFTER_MS = 100
"""The pause that rejected callers are asked for: time to answer some ten full queues."""


_INTERNAL = "internal error"
MODEL_TEXTS = (errors.ModelError.usual_text, _INTERNAL, "the model failed on these images")
"""Our server's texts with INTERNAL, which gRPC's libraries also use for broken connections; the
last is that of servers before 0.3."""


class Status(NamedTuple):
    """A status that is not OK."""

    code: StatusCode
    text: str
    metadata: tuple[tuple[str, str], ...] = ()
    """Further trailers."""

    @classmethod
    def of(cls, error: errors.ServingError) -> Self:
        """Return the status of one of our errors, with its text.

        That of an overload, or of an end of the server, also says when to retry (gRFC A6).
        """
        pushback = (("grpc-retry-pushback-ms", str(RETRY_AFTER_MS)),)
        metadata = pushback if isinstance(error, errors.Overloaded | errors.Unavailable) else ()
        return cls(STATUS[type(error)], str(error), metadata)


UNKNOWN_METHOD = Status(StatusCode.UNIMPLEMENTED, "unknown method")


def error_of(exception: Exception) -> errors.ServingError:
    """Return the error that a caller sees for an exception of a handler.

    Our own errors are passed on; any other exception is logged, and is INTERNAL without its text.
    """
    if isinstance(exception, errors.ServingError):
        return exception
    _log.error("a handler failed", exc_info=exception)
    return errors.ModelError(_INTERNAL)


def error_from(code: StatusCode, details: str, address: str) -> errors.ServingError:
    """Build the error for a status.

    Args:
        code: the status; one that is not in the table becomes Unavailable, and so does
            UNIMPLEMENTED, by which a client asks the wrong server.
        details: its text; INTERNAL is a ModelError only with a text of ours.
        address: the server's address.
    """
    for error_class, status in STATUS.items():
        if status is code:
            if error_class is errors.Unsupported:
                break
            if error_class is not errors.ModelError or details in MODEL_TEXTS:
                return error_class(f"{address}: {details}")
            break
    return errors.Unavailable(f"{address}: {code.name}: {details}")
