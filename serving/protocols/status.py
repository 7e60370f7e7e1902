"""The one table between our errors and gRPC's status codes; the server and the client read it."""

from typing import Any, NoReturn

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
    Unauthenticated,
    Unavailable,
)

STATUS: dict[type[DigitsError], grpc.StatusCode] = {
    InvalidRequest: grpc.StatusCode.INVALID_ARGUMENT,
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


MODEL_TEXTS = ("the model failed on these images", "internal error")
"""What our server says with INTERNAL; gRPC's libraries say it of broken connections, too."""


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


async def abort(context: "grpc.aio.ServicerContext[Any, Any]", error: DigitsError) -> NoReturn:
    """End a call with the status and the text of one of our errors.

    One that was rejected for overload is also told when to come back (gRFC A6).
    """
    trailers = tuple(context.trailing_metadata() or ())
    if isinstance(error, Overloaded):
        trailers = (*trailers, ("grpc-retry-pushback-ms", str(RETRY_AFTER_MS)))
    await context.abort(STATUS[type(error)], str(error), trailers)
