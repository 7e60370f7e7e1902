"""The ASGI application: routes, tokens, and errors as problem documents."""

import logging
from concurrent.futures import Executor
from http import HTTPStatus

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.errors import DigitsError, Unauthenticated
from serving.model.pictures import PictureInputs
from serving.protocols.oip.methods import Queries
from serving.protocols.status import STATUS as GRPC_STATUS
from serving.router import Router
from serving.telemetry.metrics import Metrics
from serving.transports.auth import TokenCheck
from serving.transports.http.bodies import Bodies
from serving.transports.http.calls import Calls
from serving.transports.http.classes import Classes
from serving.transports.http.digits import Digits
from serving.transports.http.inference import Inference
from serving.transports.http.numbers import Numbers
from serving.transports.http.openapi import digits_route, openapi_document
from serving.transports.http.page import page_routes
from serving.transports.http.problems import STATUS, problem, problem_document

_log = logging.getLogger(__name__)

BODY_BUDGET_BYTES = 64 << 20
"""For the bodies of all requests in progress."""
_GUARDED = ("/v2", "/v1")
"""Paths that need a token, if tokens are configured; health, the page and its files do not."""
_OPEN = ("/v2/health/live", "/v2/health/ready")
_METHODS = {"/v2": "HttpInfer", "/v1/digits": "HttpDigits", "/v1/numbers": "HttpNumbers"}
"""The name under which the calls of a path are counted."""


def make_app(
    router: Router,
    calls: Calls,
    queries: Queries,
    check: TokenCheck | None,
    pictures: Executor,
    inputs: PictureInputs,
) -> ASGIApp:
    """Build the application.

    Args:
        router: the models.
        calls: runs requests.
        queries: answers queries about the server and its models.
        check: compares tokens; None if none are configured.
        pictures: decodes pictures.
        inputs: what the command line says of models without a manifest.

    Raises:
        ConfigurationError: that fits none.
    """
    bodies = Bodies(BODY_BUDGET_BYTES)
    models = {name: (route.model.manifest, route.tensors) for name, route in router.routes.items()}
    inputs.require_one(models)
    named = {name for name, model in models.items() if inputs.find(*model) is not None}
    document = openapi_document(router, named)
    digits = []
    if digits_route(router) is not None:
        digits += Digits(router, calls, bodies, pictures).routes()
        digits += Numbers(router, calls, bodies, pictures).routes()
    app = Starlette(
        routes=[
            *Inference(router, queries, calls, bodies).routes(),
            *Classes(router, calls, bodies, pictures, inputs).routes(),
            *digits,
            Route("/openapi.json", lambda _: JSONResponse(document), methods=["GET"]),
            *page_routes(document),
        ],
        exception_handlers={
            DigitsError: _refuse,
            HTTPException: _refuse_path,
            Exception: _fail,
        },
    )
    return Guard(app, check, router.metrics)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, DigitsError)
    return problem(error)


async def _refuse_path(request: Request, error: Exception) -> Response:
    """Answer an unknown path or a wrong method."""
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    detail = {404: f"no such path: {request.url.path[:80]}", 405: f"not by {request.method}"}
    headers = dict(error.headers or {})
    return problem_document(status, detail.get(error.status_code, error.detail), headers)


async def _fail(request: Request, error: Exception) -> Response:
    return problem_document(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error")


class Guard:
    """Wraps the application: tokens before the body is read, security headers, counts."""

    def __init__(self, app: ASGIApp, check: TokenCheck | None, metrics: Metrics) -> None:
        """Pass to `app` what `check` accepts."""
        self._app = app
        self._check = check
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request; see the ASGI specification."""
        if scope["type"] != "http":
            return
        path, app = scope["path"], self._app
        if self._needs_token(path) and not self._has_token(scope):
            app = problem(Unauthenticated("a valid bearer token is needed"))
        status = HTTPStatus.INTERNAL_SERVER_ERROR.value

        async def send_with_headers(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *_HEADERS]
            await send(message)

        try:
            await app(scope, receive, send_with_headers)
        except Exception:
            _log.exception("a handler failed")
        finally:
            self._metrics.count(_method_of(path), name_of(status))

    def _needs_token(self, path: str) -> bool:
        return self._check is not None and path.startswith(_GUARDED) and path not in _OPEN

    def _has_token(self, scope: Scope) -> bool:
        assert self._check is not None
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        return self._check.accepts(sent)


_HEADERS = [
    (b"content-security-policy", b"default-src 'self'; frame-ancestors 'none'; base-uri 'none'"),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
]


def _method_of(path: str) -> str:
    if path.startswith("/v2"):
        return "HttpInfer" if path.endswith("/infer") else "HttpQuery"
    if path.startswith("/v1/models/"):
        return "HttpClassify"
    return _METHODS.get(path, "other")


_NAMES = {status.value: GRPC_STATUS[error].name for error, status in reversed(STATUS.items())}


def name_of(status: int) -> str:
    """Return the gRPC status under which calls with this outcome are counted."""
    return _NAMES.get(status, "OK" if status < 400 else "INVALID_ARGUMENT")
