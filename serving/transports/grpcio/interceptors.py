"""Optional layers before the handlers: access lines, spans, and tokens."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import grpc

from serving.config import ServerConfig
from serving.errors import Unauthenticated
from serving.protocols.method import Method
from serving.telemetry.logs import request_fields
from serving.transports.access_log import REQUEST_ID, AccessLog, LoggedCall
from serving.transports.auth import TokenCheck, token_check
from serving.transports.grpcio.calls import Calls, Context, Handler

_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


def interceptors(
    config: ServerConfig, methods: Sequence[Method], calls: Calls, log: AccessLog | None
) -> list[grpc.aio.ServerInterceptor]:
    """Return the configured interceptors, outermost first; `log` records calls.

    Raises:
        ConfigurationError: the tokens can't be used.
    """
    found: list[grpc.aio.ServerInterceptor] = []
    if log is not None:
        found.append(_Access(log))
    if (check := token_check(config.security)) is not None:
        found.append(_Tokens(check, methods, calls))
    return found


class _Access(grpc.aio.ServerInterceptor):
    """Gives each call an id, which comes back in the trailers, and logs its end."""

    def __init__(self, access_log: AccessLog) -> None:
        self._log = access_log

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Wrap the handler of a call."""
        handler: Any = await continuation(handler_call_details)
        details: Any = handler_call_details
        metadata = dict(details.invocation_metadata)
        for kind in ("unary_unary", "unary_stream", "stream_stream"):
            if (method := getattr(handler, kind)) is not None:
                wrapped = self._wrapped(method, details.method, metadata)
                return handler._replace(**{kind: wrapped})
        raise TypeError(handler)

    def _wrapped(self, handler: Handler, method: str, metadata: dict[str, str]) -> Handler:
        async def logged_handler(request: Any, context: Context) -> Any:
            call = LoggedCall(method, context.peer(), metadata)
            request_fields.set(call.ids)  # in the context of this call's task
            context.set_trailing_metadata(((REQUEST_ID, call.ids["request_id"]),))
            status = "CANCELLED"  # a status without a caller raises another error
            try:
                response = await handler(request, context)
                status = "OK"
                return response
            except grpc.aio.AbortError:
                status = context.code().name
                raise
            finally:
                self._log.end(call, status)

        return logged_handler


class _Tokens(grpc.aio.ServerInterceptor):
    """Refuses calls without a valid token before their message is read."""

    def __init__(self, check: TokenCheck, methods: Sequence[Method], calls: Calls) -> None:
        self._check = check
        self._open_paths = {method.path for method in methods if method.is_open}
        # A stream's handler can end any kind of call without waiting for its request.
        self._refused: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            calls.guarded(_refuse, "unauthenticated")
        )

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Let a call pass, or answer it UNAUTHENTICATED, even if its method is unknown."""
        details: Any = handler_call_details
        if details.method in self._open_paths or self._check.accepts(
            [value if isinstance(value, bytes) else value.encode()
             for key, value in details.invocation_metadata if key == "authorization"]
        ):  # fmt: skip
            return await continuation(handler_call_details)
        return self._refused


async def _refuse(requests: Any, context: Context) -> None:
    raise Unauthenticated
