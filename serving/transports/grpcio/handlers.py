"""The methods as handlers of grpc.aio: bytes in and bytes out."""

import asyncio
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import grpc

from serving.errors import DigitsError
from serving.protocols.method import ImagesStream, ImagesUnary, Method, Replies, Unary, Watch
from serving.protocols.status import UNKNOWN_METHOD
from serving.telemetry.metrics import Metrics
from serving.transports.grpcio.calls import AsyncCall, Caller, Calls, Context, abort
from serving.transports.grpcio.streams import Begun, answer_stream


class Handlers(grpc.GenericRpcHandler):
    """Finds a call's handler by its path."""

    def __init__(self, methods: Iterable[Method], calls: Calls, metrics: Metrics) -> None:
        """Serve `methods` through `calls`; count unknown methods in `metrics`."""
        self._handlers = {method.path: _handler(method, calls) for method in methods}
        # A stream's handler can end any kind of call without waiting for its request.
        self._unknown: Any = grpc.stream_stream_rpc_method_handler(
            partial(_refuse_unknown, metrics)
        )

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a call; an unknown method gets UNIMPLEMENTED and is counted."""
        return self._handlers.get(handler_call_details.method, self._unknown)


def _handler(method: Method, calls: Calls) -> Any:
    stream = grpc.stream_stream_rpc_method_handler
    match method:
        case ImagesStream():
            return stream(calls.guarded(partial(_answer_images, method, calls), method.name))
        case ImagesUnary():
            return grpc.unary_unary_rpc_method_handler(calls.unary(method))
        case Replies():
            return stream(calls.guarded(partial(_reply, method), method.name))
        case Watch():
            watch = partial(_watch, method)
            return grpc.unary_stream_rpc_method_handler(calls.guarded(watch, method.name))
        case Unary():
            return grpc.unary_unary_rpc_method_handler(
                calls.guarded(partial(_answer, method), method.name)
            )
    raise TypeError(method)


async def _refuse_unknown(metrics: Metrics, _: object, context: Context) -> None:
    metrics.count("other", UNKNOWN_METHOD.code.name)  # names from callers must not become labels
    await abort(context, UNKNOWN_METHOD)


async def _answer(method: Unary, request: bytes, context: Context) -> bytes:
    return method.answer(request)


async def _answer_images(method: ImagesStream, calls: Calls, _: object, context: Context) -> None:
    """Answer a stream's requests in order."""
    caller = Caller.of(context)

    def begin(request: bytes) -> Begun:
        received_s = time.monotonic()
        try:
            call = AsyncCall(*method.read(request), caller)
        except DigitsError as err:
            return None, partial(_response_to, method, request, err, received_s)
        return call, partial(respond, call, request, received_s)

    def respond(call: AsyncCall, request: bytes, received_s: float) -> bytes:
        try:
            return call.response()
        except DigitsError as err:
            return _response_to(method, request, err, received_s)

    await answer_stream(calls, context, begin)


def _response_to(
    method: ImagesStream, request: bytes, error: DigitsError, received_s: float
) -> bytes:
    method.note_failure(error, time.monotonic() - received_s)
    response = method.error_message(request, error)
    if response is None:
        raise error
    return response


async def _reply(method: Replies, _: object, context: Context) -> None:
    while (request := await context.read()) is not grpc.aio.EOF:
        for reply in method.replies(request):
            await context.write(reply)


async def _watch(method: Watch, request: bytes, context: Context) -> None:
    messages: asyncio.Queue[bytes] = asyncio.Queue()
    loop = asyncio.get_running_loop()

    def send(message: bytes) -> None:
        loop.call_soon_threadsafe(messages.put_nowait, message)

    end = method.subscribe(request, send)
    try:
        while True:
            await context.write(await messages.get())
    finally:
        end()
