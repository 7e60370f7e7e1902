"""Errors over HTTP: the table from our errors to status codes, and RFC 9457 problem documents."""

from collections.abc import Mapping
from http import HTTPStatus

from starlette.responses import JSONResponse

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

_HEADERS: dict[type[DigitsError], dict[str, str]] = {
    Unauthenticated: {"WWW-Authenticate": "Bearer"},
    Overloaded: {"Retry-After": "1"},  # whole seconds, and some ten full queues are answered in 0.1
    Unavailable: {"Retry-After": "1"},
}


def problem(error: DigitsError, headers: Mapping[str, str] | None = None) -> JSONResponse:
    """Return the problem document of one of our errors, with its text as the detail.

    Args:
        error: says the status, too.
        headers: beside those of the status.
    """
    every = {**_HEADERS.get(type(error), {}), **(headers or {})}
    return problem_document(STATUS[type(error)], str(error), every)


def problem_document(
    status: HTTPStatus, detail: str, headers: dict[str, str] | None = None
) -> JSONResponse:
    """Write a problem document (RFC 9457).

    The member `error` repeats the detail, for clients of the Open Inference Protocol.
    """
    content = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "detail": detail,
        "error": detail,
    }
    return JSONResponse(content, status.value, headers, "application/problem+json")
