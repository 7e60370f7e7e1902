"""Answers over HTTP: JSON, and errors as problem documents (RFC 9457) with their statuses."""

import json
from http import HTTPStatus
from typing import Any, NamedTuple

from serving.errors import (
    ConfigurationError,
    DigitsError,
    Overloaded,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from serving.http1.requests import Headers
from serving.protocols.status import STATUS, StatusCode

JSON = "application/json"


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


_STATUS = {
    StatusCode.INVALID_ARGUMENT: HTTPStatus.BAD_REQUEST,
    StatusCode.NOT_FOUND: HTTPStatus.NOT_FOUND,
    StatusCode.UNAUTHENTICATED: HTTPStatus.UNAUTHORIZED,
    StatusCode.RESOURCE_EXHAUSTED: HTTPStatus.TOO_MANY_REQUESTS,
    StatusCode.UNAVAILABLE: HTTPStatus.SERVICE_UNAVAILABLE,
    StatusCode.DEADLINE_EXCEEDED: HTTPStatus.GATEWAY_TIMEOUT,
    StatusCode.UNIMPLEMENTED: HTTPStatus.NOT_IMPLEMENTED,
    StatusCode.INTERNAL: HTTPStatus.INTERNAL_SERVER_ERROR,
}
_OTHERS: dict[type[DigitsError], HTTPStatus] = {
    TooLarge: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    # A file that an option names, or an extra that is not installed: the operator must act.
    ConfigurationError: HTTPStatus.NOT_IMPLEMENTED,
}
"""Errors that HTTP tells apart and gRPC does not."""
_HEADERS: dict[type[DigitsError], Headers] = {
    Unauthenticated: [("www-authenticate", "Bearer")],
    Overloaded: [("retry-after", "1")],  # whole seconds, and some ten full queues take 0.1
    Unavailable: [("retry-after", "1")],
}
_NAMES: dict[int, str] = {
    **{status: code.name for code, status in _STATUS.items()},
    **{status: STATUS[error].name for error, status in _OTHERS.items()},
}


def http_status(error: type[DigitsError]) -> HTTPStatus:
    """Return the status of one of our errors."""
    return _OTHERS.get(error) or _STATUS[STATUS[error]]


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
        status, headers = http_status(type(error)), _HEADERS.get(type(error), ())
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
