"""The table between our errors, gRPC's status codes, reasons and HTTP, for server and client."""

import logging
from enum import IntEnum
from http import HTTPStatus
from typing import NamedTuple, Self

from serving import errors
from serving.protocols import error_info

_log = logging.getLogger(__name__)
_SERVER_ERROR = HTTPStatus.INTERNAL_SERVER_ERROR
PUSHBACK = "grpc-retry-pushback-ms"
"""The trailer that asks for another attempt after a pause (gRFC A6)."""
RETRY_AFTER_S = 0.1
"""The pause that rejected callers are asked for: time to answer some ten full queues."""
_INTERNAL = "internal error"


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


class StatusRow(NamedTuple):
    """How one class of errors is told to callers."""

    code: StatusCode
    reason: str
    """`google.rpc.ErrorInfo.reason` on gRPC, `reason` of HTTP's problem document."""
    http: HTTPStatus
    is_retried: bool = False
    """Whether our clients send the call again, while its deadline and their budget allow."""


TABLE: dict[type[errors.ServingError], StatusRow] = {
    errors.InvalidRequest:
        StatusRow(StatusCode.INVALID_ARGUMENT, "INVALID_REQUEST", HTTPStatus.BAD_REQUEST),
    errors.TooLarge:  # never with a pushback: sent again it is as large
        StatusRow(StatusCode.RESOURCE_EXHAUSTED, "TOO_LARGE", HTTPStatus.REQUEST_ENTITY_TOO_LARGE),
    errors.Unsupported:
        StatusRow(StatusCode.UNIMPLEMENTED, "UNSUPPORTED", HTTPStatus.NOT_IMPLEMENTED),
    errors.NotAllowed:
        StatusRow(StatusCode.FAILED_PRECONDITION, "NOT_ALLOWED", HTTPStatus.FORBIDDEN),
    errors.ModelNotFound:
        StatusRow(StatusCode.NOT_FOUND, "MODEL_NOT_FOUND", HTTPStatus.NOT_FOUND),
    errors.Unauthenticated:
        StatusRow(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED", HTTPStatus.UNAUTHORIZED),
    errors.Overloaded:
        StatusRow(StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED", HTTPStatus.TOO_MANY_REQUESTS, True),
    errors.Unavailable:
        StatusRow(StatusCode.UNAVAILABLE, "UNAVAILABLE", HTTPStatus.SERVICE_UNAVAILABLE, True),
    errors.DeadlineExceeded:
        StatusRow(StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED", HTTPStatus.GATEWAY_TIMEOUT),
    errors.ModelError:
        StatusRow(StatusCode.INTERNAL, "MODEL_ERROR", _SERVER_ERROR),
    # These end the start of a server; a caller sees them where he has a model loaded.
    errors.CorruptModel:
        StatusRow(StatusCode.INTERNAL, "CORRUPT_MODEL", _SERVER_ERROR),
    errors.DeviceError:
        StatusRow(StatusCode.INTERNAL, "DEVICE_ERROR", _SERVER_ERROR),
    # A file that an option names, or an extra that is not installed: the operator must act.
    errors.ConfigurationError:
        StatusRow(StatusCode.INTERNAL, "CONFIGURATION_ERROR", HTTPStatus.NOT_IMPLEMENTED),
}  # fmt: skip
"""The errors that callers can get; docs/clients.md says what to do about each."""


_OTHER = errors.ModelError
"""The class of errors that refine none of the table's."""


def row_of(error: errors.ServingError) -> StatusRow:
    """Return the row of an error: that of its class, or of the one that its class refines."""
    kind = type(error)
    return TABLE.get(kind) or next(TABLE[each] for each in (*kind.__mro__, _OTHER) if each in TABLE)


_BY_REASON = {row.reason: error for error, row in TABLE.items()}
_BY_CODE: dict[StatusCode, type[errors.ServingError]] = {
    row.code: error for error, row in reversed(TABLE.items()) if row.code != StatusCode.INTERNAL
}
"""The error for a status without a reason, as other servers and gRPC's libraries send it: the first
of the table. RESOURCE_EXHAUSTED is TooLarge then, as grpcio refuses long messages, unless it asks
for a pause. INTERNAL, which libraries also use for broken connections, is Unavailable."""


def error_named(reason: str, text: str) -> errors.ServingError:
    """Build the error of a reason; a ModelError for one that is in no table."""
    return _BY_REASON.get(reason, _OTHER)(text)


class Status(NamedTuple):
    """A status that is not OK."""

    code: StatusCode
    text: str
    metadata: tuple[tuple[str, str], ...] = ()
    """Further trailers."""

    @classmethod
    def of(cls, error: errors.ServingError, *more: tuple[str, str]) -> Self:
        """Return the status of one of our errors, with its text, its reason and more trailers.

        That of an overload, or of an end of the server, also says when to retry.
        """
        row, text = row_of(error), str(error).strip()
        trailers = [(error_info.TRAILER, error_info.encode(row.code, text, row.reason)), *more]
        if isinstance(error, errors.Overloaded | errors.Unavailable):
            pause_s = RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
            trailers.append((PUSHBACK, str(round(pause_s * 1e3))))
        return cls(row.code, text, tuple(trailers))


UNKNOWN_METHOD = Status.of(errors.Unsupported("unknown method"))


def error_of(exception: Exception) -> errors.ServingError:
    """Return the error that a caller sees for an exception of a method.

    Our own errors are passed on; any other exception is logged, and is INTERNAL without its text.
    """
    if isinstance(exception, errors.ServingError):
        return exception
    _log.error("a method failed", exc_info=exception)
    return errors.ModelError(_INTERNAL)


class Failure(NamedTuple):
    """How a call failed, as a client sees it."""

    code: StatusCode
    text: str
    is_answer: bool = False
    """Whether a server answered so without asking for another attempt."""
    reason: str = ""
    """The reason in its trailers, if it is a server of ours."""
    pushback_s: float | None = None
    """The pause after which it asks for another attempt; negative: never."""
    is_permanent: bool = False
    """Whether another attempt would end in the same way, such as certificates that don't match."""


def error_from(failure: Failure, address: str) -> errors.ServingError:
    """Build the error for a failed call, by its status and its reason.

    Args:
        failure: a status that is in no table becomes Unavailable.
        address: the server's address.
    """
    code, text = failure.code, f"{address}: {failure.text}"
    found = _BY_REASON.get(failure.reason)
    if found is None or TABLE[found].code is not code:
        found = _BY_CODE.get(code)
        if code is StatusCode.RESOURCE_EXHAUSTED and failure.pushback_s is not None:
            found = errors.Overloaded
    if found is None:
        return errors.Unavailable(
            f"{address}: {code.name}: {failure.text}", retry_after_s=failure.pushback_s
        )
    if issubclass(found, errors.Overloaded | errors.Unavailable):
        return found(text, retry_after_s=failure.pushback_s)
    return found(text)
