"""Access lines for a share of the calls, and the ids that join them to other services' logs.

Only on the grpcio transport, and only where asked for: without it no call pays for it.
"""

import logging
import random
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import grpc

from serving.telemetry.logs import ACCESS, request_fields
from serving.transports.grpcio.calls import Context, Handler

_log = logging.getLogger(ACCESS)

_MAX_LINES_PER_S = 100
"""More calls than these fail in a second only when it is known by other means."""
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
"""https://www.w3.org/TR/trace-context: version, trace id, parent id, flags."""

_Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Any]]


class AccessInterceptor(grpc.aio.ServerInterceptor):
    """Gives each call an id, and logs a share of those that succeed and all that fail.

    The id is the caller's `x-request-id`, or a new one; it comes back in the trailers. It and the
    trace of the caller's `traceparent` are in every line that is logged for the call.
    """

    def __init__(self, share: float) -> None:
        """Log `share` of the calls that succeed, 0 to 1."""
        self._share = share
        self._second = 0
        self._num_lines = 0

    async def intercept_service(
        self, continuation: _Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Any:
        """Wrap the handler of a call; the watch of health, a call that lasts, is left alone."""
        handler: Any = await continuation(handler_call_details)
        details: Any = handler_call_details
        if handler is None or handler.unary_stream:
            return handler
        fields = _fields(details.invocation_metadata)
        coders = (handler.request_deserializer, handler.response_serializer)
        if handler.unary_unary:
            wrapped = self._wrapped(handler.unary_unary, details.method, fields)
            return grpc.unary_unary_rpc_method_handler(wrapped, *coders)
        wrapped = self._wrapped(handler.stream_stream, details.method, fields)
        return grpc.stream_stream_rpc_method_handler(wrapped, *coders)

    def _wrapped(self, handler: Handler, method: str, fields: Mapping[str, str]) -> Handler:
        async def logged_handler(request: Any, context: Context) -> Any:
            request_fields.set(fields)  # of this call's task
            context.set_trailing_metadata((("x-request-id", fields["request_id"]),))
            begun_s = time.monotonic()
            try:
                return await handler(request, context)
            finally:
                self._note(method, context, fields, time.monotonic() - begun_s)

        return logged_handler

    def _note(
        self, method: str, context: Context, fields: Mapping[str, str], duration_s: float
    ) -> None:
        code = context.code() or 0
        status = _NAMES[code if isinstance(code, int) else code.value[0]]
        if (status == "OK" and random.random() >= self._share) or not self._has_room():
            return
        facts = {"method": method, "status": status, "duration_s": round(duration_s, 6)}
        _log.info("call", extra={"fields": {**facts, "peer": context.peer(), **fields}})

    def _has_room(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._num_lines = second, 0
        self._num_lines += 1
        return self._num_lines <= _MAX_LINES_PER_S


_NAMES = {status.value[0]: status.name for status in grpc.StatusCode}


def _fields(metadata: Any) -> dict[str, str]:
    """Read the ids from a call's metadata; what is malformed is ignored."""
    sent = {key: value for key, value in metadata or () if isinstance(value, str)}
    request_id = sent.get("x-request-id", "")
    if not _REQUEST_ID.fullmatch(request_id):
        request_id = secrets.token_hex(8)
    fields = {"request_id": request_id}
    if trace := _TRACEPARENT.fullmatch(sent.get("traceparent", "")):
        fields |= {"trace_id": trace[1], "parent_id": trace[2]}
    return fields
