"""The table between our errors and gRPC's status codes, for server and client."""

import logging
from typing import NamedTuple, Self

import grpc

from serving.errors import (
    ConfigurationError,
    CorruptModel,
    DeadlineExceeded,
    DeviceError,
    DigitsError,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    Overloaded,
    TooLarge,
    Unauthenticated,
    Unavailable,
)

_log = logging.getLogger(__name__)

STATUS: dict[type[DigitsError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
    TooLarge: grpc.StatusCode.INVALID_ARGUMENT,
    ModelNotFound: grpc.StatusCode.NOT_FOUND,
    Unauthenticated: grpc.StatusCode.UNAUTHENTICATED,
    Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Unavailable: grpc.StatusCode.UNAVAILABLE,
    DeadlineExceeded: grpc.StatusCode.DEADLINE_EXCEEDED,
    ModelError: grpc.StatusCode.INTERNAL,
    # These end the start of a server; none reaches a caller.
    CorruptModel: grpc.StatusCode.INTERNAL,
    DeviceError: grpc.StatusCode.INTERNAL,
    ConfigurationError: grpc.StatusCode.INTERNAL,
}

RETRY_AFTER_MS = 100
"""The pause that rejected callers are asked for: time to answer some ten full queues."""


_INTERNAL = "internal error"
MODEL_TEXTS = (ModelError.usual_text, _INTERNAL)
"""Our server's texts with INTERNAL, which gRPC's libraries also use for broken connections."""


class Status(NamedTuple):
    """A status that is not OK."""

    code: grpc.StatusCode
    text: str
    metadata: tuple[tuple[str, str], ...] = ()
    """Further trailers."""

    @classmethod
    def of(cls, error: DigitsError) -> Self:
        """Return the status of one of our errors, with its text.

        That of an overload, or of an end of the server, also says when to retry (gRFC A6).
        """
        pushback = (("grpc-retry-pushback-ms", str(RETRY_AFTER_MS)),)
        metadata = pushback if isinstance(error, Overloaded | Unavailable) else ()
        return cls(STATUS[type(error)], str(error), metadata)


UNKNOWN_METHOD = Status(grpc.StatusCode.UNIMPLEMENTED, "unknown method")


def error_of(exception: Exception) -> DigitsError:
    """Return the error that a caller sees for an exception of a handler.

    Our own errors are passed on; any other exception is logged, and is INTERNAL without its text.
    """
    if isinstance(exception, DigitsError):
        return exception
    _log.error("a handler failed", exc_info=exception)
    return ModelError(_INTERNAL)


def error_from(code: grpc.StatusCode, details: str, address: str) -> DigitsError:
    """Build the error for a status.

    Args:
        code: the status; one that is not in the table becomes Unavailable.
        details: its text; INTERNAL is a ModelError only with a text of ours.
        address: the server's address.
    """
    for error_class, status in STATUS.items():
        if status is code and (error_class is not ModelError or details in MODEL_TEXTS):
            return error_class(f"{address}: {details}")
        if status is code:
            break
    return Unavailable(f"{address}: {code.name}: {details}")
