"""The one table between our errors and gRPC's status codes; the server and the client read it."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

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

_log = logging.getLogger(__name__)

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

_RETRY_AFTER_MS = 100
"""The pause that a rejected caller is asked for: some ten full queues are answered in it."""

Handler = Callable[[Any, "grpc.aio.ServicerContext[Any, Any]"], Awaitable[Any]]


def guarded(handler: Handler) -> Handler:
    """Wrap a handler so that whatever it raises leaves as one status of the table.

    The texts of our own errors are shown; any other exception is logged here and leaves as
    INTERNAL without its text.
    """

    async def guarded_handler(request: Any, context: "grpc.aio.ServicerContext[Any, Any]") -> Any:
        try:
            return await handler(request, context)
        except DigitsError as err:
            await _abort(context, err)
        except asyncio.CancelledError:
            # Escaping, it would leave a caller that is still there without a status (grpc #29248).
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the call was cut off")
        except grpc.aio.AbortError:
            raise
        except Exception:
            _log.exception("a handler failed")
            await context.abort(grpc.StatusCode.INTERNAL, "internal error")

    return guarded_handler


def error_from(code: grpc.StatusCode, text: str) -> DigitsError:
    """Build the error that a status stands for; a code of no table entry becomes Unavailable."""
    for error_class, status in STATUS.items():
        if status is code:
            return error_class(text)
    return Unavailable(f"{code.name}: {text}")


async def _abort(context: "grpc.aio.ServicerContext[Any, Any]", error: DigitsError) -> None:
    trailers: tuple[tuple[str, str], ...] = ()
    if isinstance(error, Overloaded):
        trailers = (("grpc-retry-pushback-ms", str(_RETRY_AFTER_MS)),)
    await context.abort(STATUS[type(error)], str(error), trailers)
