"""The methods as handlers of grpc.aio: one message at a time, bytes in and bytes out."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import grpc

from serving.batching.awaited_call import Peer, submit, submit_of_stream
from serving.batching.queue import Owner
from serving.credentials.tokens import TokenCheck
from serving.errors import DigitsError, Overloaded, Unauthenticated, Unavailable
from serving.protocols.encoding import PREFIX_BYTES
from serving.protocols.method import BatchedStream, BatchedUnary, Method, Replies, Unary, Watch
from serving.protocols.status import UNKNOWN_METHOD, Status, StatusCode, error_of
from serving.telemetry.logs import request_fields
from serving.telemetry.metrics import Metrics
from serving.telemetry.tracing import latest_run
from serving.transports.access_log import REQUEST_ID, AccessLog, LoggedCall

_PAUSE_S = 0.005
"""How long a stream pauses while the queue is full."""

_Context = grpc.aio.ServicerContext[Any, Any]
_Handler = Callable[[Any, _Context], Awaitable[bytes | None]]


class _UnknownMethod(Exception):
    """There is no method at the path of a call."""


class Handlers(grpc.GenericRpcHandler):
    """Answers all calls of a server; used on its event loop only."""

    def __init__(
        self, methods: Iterable[Method], owner: Owner, metrics: Metrics,
        tokens: TokenCheck | None, log: AccessLog | None,
    ) -> None:  # fmt: skip
        """Serve `methods`, whose calls `owner` runs; None for no `tokens` or no `log`."""
        self._owner = owner
        self._methods = {method.path: method for method in methods}
        unary = (each for each in self._methods.values() if type(each) is BatchedUnary)
        self._batched = {method.name for method in unary}
        self._metrics = metrics
        self._peers: WeakValueDictionary[str, Peer] = WeakValueDictionary()
        """Those that have calls in progress."""
        self._tokens = tokens
        self._log = log
        self._kinds: dict[type[Method], tuple[Any, Any]] = {
            Unary: (grpc.unary_unary_rpc_method_handler, _answer),
            BatchedUnary: (grpc.unary_unary_rpc_method_handler, self._run),
            BatchedStream: (grpc.stream_stream_rpc_method_handler, self._run_stream),
            Replies: (grpc.stream_stream_rpc_method_handler, _reply),
            Watch: (grpc.unary_stream_rpc_method_handler, _watch),
        }
        self.num_begun = self.num_active = 0
        self.refusal: DigitsError | None = None
        """Why new batched calls are refused, during a drain."""
        self.closing: asyncio.Event | None = None
        """During a drain: calls that are refused as Unavailable end once it is set."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a call."""
        path, metadata = handler_call_details.method, handler_call_details.invocation_metadata
        method = self._methods.get(path)
        # A stream's handler can refuse any kind of call before its message is read.
        shape, name = grpc.stream_stream_rpc_method_handler, "other"  # not a name from callers
        if not (method and method.is_open) and not self._has_token(metadata):
            name, handler = "unauthenticated", partial(_refuse, Unauthenticated())
        elif method is None:
            handler = partial(_refuse, _UnknownMethod())
        else:
            shape, handler = self._kinds[type(method)]
            name, handler = method.name, partial(handler, method)
        return shape(self._guarded(handler, name, path))

    def _has_token(self, metadata: Any) -> bool:
        values = [value.encode() for key, value in metadata if key == "authorization"]
        return self._tokens is None or self._tokens.accepts(values)

    def _guarded(self, handler: _Handler, name: str, path: str) -> _Handler:
        """Wrap a handler: count and log its call, and turn exceptions into a status."""

        async def guarded(request: Any, context: _Context) -> bytes | None:
            call = self._begin_log(path, context)
            self.num_begun += 1
            self.num_active += 1
            response, refusal, code = None, None, "OK"
            try:
                response = await handler(request, context)
            except asyncio.CancelledError:  # the caller left, or the server stops
                # If it escaped, a caller that is still there would get no status (grpc #29248).
                refusal, code = Status.of(Unavailable("the call was cut off")), "CANCELLED"
            except Exception as err:
                is_unknown = isinstance(err, _UnknownMethod)
                refusal = UNKNOWN_METHOD if is_unknown else Status.of(error_of(err))
                code = refusal.code.name
            self.num_active -= 1
            if code != "OK" or name not in self._batched:  # runs count their own answers
                self._metrics.count(name, code)
            if self._log is not None and call is not None:
                self._log.end(call, code)
            if refusal is not None:
                if self.closing is not None and refusal.code is StatusCode.UNAVAILABLE:
                    await self.closing.wait()
                trailers = (*(context.trailing_metadata() or ()), *refusal.metadata)
                await context.abort(grpc.StatusCode[refusal.code.name], refusal.text, trailers)
            return response

        return guarded

    def _begin_log(self, path: str, context: _Context) -> LoggedCall | None:
        if self._log is None:
            return None
        metadata: Any = context.invocation_metadata()
        call = LoggedCall(path, context.peer(), dict(metadata))
        request_fields.set(call.ids)  # in the context of this call's task
        context.set_trailing_metadata(((REQUEST_ID, call.ids["request_id"]),))
        return call

    async def _run(self, method: BatchedUnary, message: bytes, context: _Context) -> bytes:
        received_s, peer = time.monotonic(), context.peer()
        # Connections take turns.
        caller = self._peers.setdefault(peer, Peer(peer.rpartition(":")[0]))
        if self.refusal is not None:
            raise self.refusal
        rows, encoder = method.read(message)
        left_s = [s for s in (context.time_remaining(), encoder.timeout_s) if s is not None]
        deadline_s = received_s + min(left_s, default=math.inf)
        enter = submit_of_stream if isinstance(method, BatchedStream) else encoder.target.submit
        while True:
            try:
                framed, run = await submit(self._owner, caller, rows, encoder, deadline_s, enter)
                break
            except Overloaded:
                if enter is not submit_of_stream:
                    raise
                await asyncio.sleep(_PAUSE_S)
        latest_run.set(run)
        return bytes(framed[PREFIX_BYTES:])

    async def _run_stream(self, method: BatchedStream, _: object, context: _Context) -> None:
        """Answer messages one after the other, and read none meanwhile.

        So HTTP/2's flow control stops a caller that does not read its answers, and a full queue
        slows a stream down: it is never refused in the middle.
        """
        while (message := await context.read()) is not grpc.aio.EOF:
            response: bytes | None
            try:
                response = await self._run(method, message, context)
            except DigitsError as err:
                response = method.error_message(message, err)
                if response is None:
                    raise
            await context.write(response)


async def _refuse(error: Exception, _: object, context: _Context) -> bytes:
    raise error


async def _answer(method: Unary, message: bytes, context: _Context) -> bytes:
    if method.is_slow:
        return await asyncio.to_thread(method.answer, message)
    return method.answer(message)


async def _reply(method: Replies, _: object, context: _Context) -> None:
    while (message := await context.read()) is not grpc.aio.EOF:
        for reply in method.replies(message):
            await context.write(reply)


async def _watch(method: Watch, message: bytes, context: _Context) -> None:
    replies: asyncio.Queue[bytes] = asyncio.Queue()
    post: Any = asyncio.get_running_loop().call_soon_threadsafe
    end = method.subscribe(message, partial(post, replies.put_nowait))
    try:
        while True:
            await context.write(await replies.get())
    finally:
        end()
