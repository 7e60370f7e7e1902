"""Answers over HTTP: JSON, and errors as problem documents (RFC 9457) with their statuses."""

import json
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, NamedTuple

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
from serving.protocols.status import STATUS as GRPC_STATUS

JSON = "application/json"
Headers = Iterable[tuple[str, str]]


class Answer(NamedTuple):
    """An answer to a request."""

    body: bytes
    kind: str = JSON
    """The type of the body."""
    status: int = 200
    headers: Headers = ()
    """Beside those of every answer."""


class HttpError(Exception):
    """A request that is refused for a reason that only HTTP has."""

    def __init__(self, status: HTTPStatus, text: str, headers: Headers = ()) -> None:
        """Refuse with a status and its reason."""
        super().__init__(text)
        self.status = status
        self.headers = headers


STATUS: dict[type[DigitsError], HTTPStatus] = {
    InvalidRequest: HTTPStatus.BAD_REQUEST,
    TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    ModelNotFound: HTTPStatus.NOT_FOUND,
    Unauthenticated: HTTPStatus.UNAUTHORIZED,
    Overloaded: HTTPStatus.TOO_MANY_REQUESTS,
    Unavailable: HTTPStatus.SERVICE_UNAVAILABLE,
    DeadlineExceeded: HTTPStatus.GATEWAY_TIMEOUT,
    ModelError: HTTPStatus.INTERNAL_SERVER_ERROR,
    # A file that an option names, or an extra that is not installed: the operator has to act.
    ConfigurationError: HTTPStatus.NOT_IMPLEMENTED,
    # These end the start of a server; none reaches a caller.
    CorruptModel: HTTPStatus.INTERNAL_SERVER_ERROR,
    DeviceError: HTTPStatus.INTERNAL_SERVER_ERROR,
}

_HEADERS: dict[type[DigitsError], Headers] = {
    Unauthenticated: [("www-authenticate", "Bearer")],
    Overloaded: [("retry-after", "1")],  # whole seconds, and some ten full queues take 0.1
    Unavailable: [("retry-after", "1")],
}
_NAMES = {status.value: GRPC_STATUS[error].name for error, status in reversed(STATUS.items())}


def as_json(content: Any, status: int = 200) -> Answer:
    """Write an answer of JSON."""
    return Answer(json.dumps(content, separators=(",", ":")).encode(), status=status)


def problem(error: DigitsError | HttpError) -> Answer:
    """Write the problem document of an error, with its text as the detail.

    The member `error` repeats the detail, for clients of the Open Inference Protocol.
    """
    if isinstance(error, HttpError):
        status, headers = error.status, error.headers
    else:
        status, headers = STATUS[type(error)], _HEADERS.get(type(error), ())
    content = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": str(error),
        "error": str(error),
    }
    return Answer(json.dumps(content).encode(), "application/problem+json", status.value, headers)


def name_of(status: int) -> str:
    """Return the gRPC status under which calls with this outcome are counted."""
    return _NAMES.get(status, "OK" if status < 400 else "INVALID_ARGUMENT")
