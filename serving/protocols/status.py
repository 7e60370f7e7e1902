"""The one table between our errors and gRPC's status codes; the server and the client read it."""

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
"""The pause that a rejected caller is asked for: some ten full queues are answered in it."""


_INTERNAL = "internal error"
MODEL_TEXTS = (ModelError.usual_text, _INTERNAL)
"""What our server says with INTERNAL; gRPC's libraries say it of broken connections, too."""


class Status(NamedTuple):
    """How a call ends that is not OK."""

    code: grpc.StatusCode
    text: str
    metadata: tuple[tuple[str, str], ...] = ()
    """What its trailers hold besides."""

    @classmethod
    def of(cls, error: DigitsError) -> Self:
        """Give the status of one of our errors, with its text.

        One that was rejected for overload also says when to come back (gRFC A6).
        """
        pushback = (("grpc-retry-pushback-ms", str(RETRY_AFTER_MS)),)
        metadata = pushback if isinstance(error, Overloaded) else ()
        return cls(STATUS[type(error)], str(error), metadata)


UNKNOWN_METHOD = Status(grpc.StatusCode.UNIMPLEMENTED, "unknown method")


def error_of(exception: Exception) -> DigitsError:
    """Return what a caller gets to see of what a handler raised.

    Our own errors are shown as they are; any other is logged, and is INTERNAL without its text.
    """
    if isinstance(exception, DigitsError):
        return exception
    _log.error("a handler failed", exc_info=exception)
    return ModelError(_INTERNAL)


def error_from(code: grpc.StatusCode, details: str, address: str) -> DigitsError:
    """Build the error that a status stands for.

    Args:
        code: the status; one of no table entry becomes Unavailable.
        details: the text that came with it; INTERNAL is a ModelError only with one of ours.
        address: where it came from.
    """
    for error_class, status in STATUS.items():
        if status is code and (error_class is not ModelError or details in MODEL_TEXTS):
            return error_class(f"{address}: {details}")
        if status is code:
            break
    return Unavailable(f"{address}: {code.name}: {details}")
