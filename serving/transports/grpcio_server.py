"""The grpcio transport: every method on grpc.aio, the plainest way. It is the reference.

HTTP, if it is on, and the batchers have their turns on the same event loop.
"""

import asyncio
import base64
import logging
import math
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import aclosing
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

import grpc

from serving.batching.awaited import AsyncCaller, submit, submit_of_stream, submit_parts
from serving.batching.run import ResponseEncoder
from serving.config import ServerConfig
from serving.errors import Overloaded, ServingError, Unauthenticated, Unavailable
from serving.protocols.framing import PREFIX_BYTES
from serving.protocols.method import Method, ReadRows, Refused
from serving.protocols.status import UNKNOWN_METHOD, Status, StatusCode, error_of
from serving.router import Router
from serving.security.tokens import TokenCheck, token_check
from serving.system.addresses import with_port
from serving.system.listening import bind
from serving.telemetry.access_log import AccessLog, LoggedCall, open_access_log
from serving.telemetry.logs import REQUEST_ID, request_fields
from serving.telemetry.metrics import NO_MODEL, Metrics
from serving.transports.asyncio_loop import AsyncioLoop
from serving.transports.grpcio_credentials import server_credentials
from serving.transports.peer import public_headers
from serving.transports.pools import Pool
from serving.transports.port_limits import max_message_bytes

_log = logging.getLogger(__name__)

_QUIET_S = 0.1
"""Seconds without a new call after which a drain is over, and how often it looks for them."""
_MAX_LOOKS = 50
_GOODBYE_S = 0.02
"""How long callers have to learn that the port closes, before the held calls are refused."""
_MAX_PARTS = 512
"""The most requests of one stream that are answered in parts at a time."""
_PAUSE_S = 0.005
"""How long a stream pauses while the queue is full."""

_Context = grpc.aio.ServicerContext[Any, Any]


class _AsyncioCall:
    """A call, for methods' coroutines; messages of a stream are answered one by one.

    So HTTP/2's flow control stops a caller that does not read its answers, and a full queue slows a
    stream down: it is never refused in the middle.
    """

    def __init__(
        self,
        handlers: "Handlers",
        method: Method,
        request: bytes,
        context: _Context,
        logged: LoggedCall | None,
    ) -> None:
        """Take the caller's one message, unless it may send more."""
        self._handlers, self._method, self._context = handlers, method, context
        self._request, self._received_s, self._logged = request, time.monotonic(), logged
        self.model = NO_MODEL
        self.response: bytes | None = None
        """The one answer, unless there may be more."""
        self._posted: asyncio.Queue[bytes] = asyncio.Queue()
        self._writing = asyncio.Lock()
        self._parts: set[asyncio.Task[None]] = set()
        """Send the answers to requests that are answered in parts; cancelled with the call."""
        self.failure: ServingError | None = None
        """Why one of them has cancelled the call."""
        self._task: Any = asyncio.current_task()
        soon: Any = asyncio.get_running_loop().call_soon_threadsafe
        self.post = partial(soon, self._posted.put_nowait)

    async def message(self) -> Any:
        if self._method.takes_one:
            return self._request
        message = await self._context.read()
        self._received_s = time.monotonic()
        return None if message is grpc.aio.EOF else message

    async def send(self, message: bytes) -> None:
        if self._method.sends_one:
            self.response = message
        else:
            async with self._writing:
                await self._context.write(message)

    async def send_framed(self, response: bytes) -> None:
        await self.send(bytes(memoryview(bytes(response))[PREFIX_BYTES:]))

    async def run(self, rows: Any, encoder: ResponseEncoder, enter: Any = None) -> bytes:
        framed, run = await submit(*self._begun(rows, encoder, enter))
        if self._logged is not None:
            self._logged.run = run
        response: bytes = framed
        return response

    def _begun(self, rows: Any, encoder: ResponseEncoder, enter: Any) -> Any:
        """Return the arguments of `submit` for a request."""
        handlers, peer = self._handlers, self._context.peer()
        self.model = encoder.target.label
        if handlers.refusal is not None:
            raise handlers.refusal
        # Connections take turns.
        caller = handlers.peers.setdefault(peer, AsyncCaller(peer.rpartition(":")[0]))
        left_s = [s for s in (self._context.time_remaining(), encoder.timeout_s) if s is not None]
        deadline_s = self._received_s + min(left_s, default=math.inf)
        sent: Any = self._context.invocation_metadata() if handlers.loop.keeps_headers else ()
        headers = public_headers((name, value) for name, value in sent if isinstance(value, str))
        return handlers.loop, caller, rows, encoder, deadline_s, enter, headers

    async def answer_in_order(self, rows: ReadRows | ServingError, refused: Refused) -> None:
        try:
            if isinstance(rows, ServingError):
                raise rows
            if rows[1].in_parts:
                while len(self._parts) >= _MAX_PARTS:
                    await asyncio.wait(self._parts, return_when=asyncio.FIRST_COMPLETED)
                task = asyncio.create_task(self._answer_in_parts(*rows, refused))
                self._parts.add(task)
                task.add_done_callback(self._parts.discard)
                return
            await self.send_framed(await self._run_once_there_is_room(*rows))
        except ServingError as err:
            response = refused(err)
            if response is None:
                raise
            await self.send(response)

    async def _answer_in_parts(self, rows: Any, encoder: ResponseEncoder, refused: Refused) -> None:
        """Answer a request among others; some errors end the call."""
        try:
            while True:
                try:
                    parts = submit_parts(*self._begun(rows, encoder, submit_of_stream))
                    async with aclosing(parts):
                        async for part in parts:
                            await self.send_framed(part)
                    return
                except Overloaded:
                    await asyncio.sleep(_PAUSE_S)
        except ServingError as err:
            response = refused(err)
            if response is not None:
                await self.send(response)
            elif self.failure is None:
                self.failure = err
                self._task.cancel()

    async def answered(self) -> None:
        """Wait until the requests that are answered in parts have all of them."""
        while self._parts:
            await asyncio.wait(self._parts)

    def close(self) -> None:
        """End the requests that are answered in parts."""
        for task in [*self._parts]:
            task.cancel()

    async def _run_once_there_is_room(self, rows: Any, encoder: ResponseEncoder) -> bytes:
        while True:
            try:
                return await self.run(rows, encoder, submit_of_stream)
            except Overloaded:
                await asyncio.sleep(_PAUSE_S)

    async def work(self, function: Callable[..., Any], *args: Any, pool: Pool | None = None) -> Any:
        if pool is None:
            return await asyncio.to_thread(function, *args)
        address = self._context.peer().rpartition(":")[0]
        return await asyncio.wrap_future(pool.submit(address, function, *args))

    async def left(self) -> None:
        while True:
            await self.send(await self._posted.get())


class Handlers(grpc.GenericRpcHandler):
    """Answers all calls of a server; used on its event loop only."""

    def __init__(
        self,
        methods: Iterable[Method],
        loop: AsyncioLoop,
        metrics: Metrics,
        tokens: TokenCheck | None,
        log: AccessLog | None,
    ) -> None:
        """Serve `methods`, whose rows `loop` runs; None for no `tokens` or no `log`."""
        self.loop = loop
        self._methods = {method.path: method for method in methods}
        self._metrics = metrics
        self.peers: WeakValueDictionary[str, AsyncCaller] = WeakValueDictionary()
        """Callers that have calls in progress."""
        self._tokens = tokens
        self._log = log
        self.num_begun = self.num_active = 0
        self.refusal: ServingError | None = None
        """Why new batched calls are refused, during a drain."""
        self.closing: asyncio.Event | None = None
        """During a drain: calls that are refused as Unavailable end once it is set."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
        """Return the handler of a call."""
        path, metadata = handler_call_details.method, handler_call_details.invocation_metadata
        method = self._methods.get(path)
        # A stream's handler can refuse any kind of call before its message is read.
        shape: Any = grpc.stream_stream_rpc_method_handler
        name, refusal = "other", None  # not a name from callers
        if not (method and method.is_open) and not self._has_token(metadata):
            name, refusal = "unauthenticated", Status.of(Unauthenticated())
        elif method is None:
            refusal = UNKNOWN_METHOD
        else:
            name = method.name
            if method.takes_one:
                shape = grpc.unary_stream_rpc_method_handler
                if method.sends_one:
                    shape = grpc.unary_unary_rpc_method_handler
        return shape(self._handler(method, refusal, name, path))

    def _has_token(self, metadata: Any) -> bool:
        values = [value.encode() for key, value in metadata if key == "authorization"]
        return self._tokens is None or self._tokens.accepts(values)

    def _handler(self, method: Method | None, refusal: Status | None, name: str, path: str) -> Any:
        """Return a coroutine that answers, counts and logs calls; exceptions become a status."""

        async def answer(request: Any, context: _Context) -> bytes | None:
            logged = self._begin_log(path, context)
            self.num_begun += 1
            self.num_active += 1
            call, reason, code, failed = None, refusal, "OK", None
            try:
                if reason is None and method is not None:
                    call = _AsyncioCall(self, method, request, context, logged)
                    await method.handle(call)
                    await call.answered()
            except asyncio.CancelledError:  # the caller left, or the server stops
                # If it escaped, a caller that is still there would get no status (grpc #29248).
                reason, code = Status.of(Unavailable("the call was cut off")), "CANCELLED"
                if call is not None and call.failure is not None:
                    reason, code = Status.of(call.failure), "OK"
            except Exception as err:
                reason, failed = Status.of(error_of(err)), getattr(err, "model", None)
            finally:
                if call is not None:
                    call.close()
            self.num_active -= 1
            if reason is not None and code == "OK":
                code = reason.code.name
            if code != "OK" or method is None or not method.is_counted_by_run:
                model = failed or (call.model if call else NO_MODEL)
                self._metrics.count(name, code, model=model)
            if self._log is not None and logged is not None:
                self._log.end(logged, code)
            if reason is not None:
                if self.closing is not None and reason.code is StatusCode.UNAVAILABLE:
                    await self.closing.wait()
                trailers = (*(context.trailing_metadata() or ()), *_as_grpcio_has_it(reason))
                await context.abort(grpc.StatusCode[reason.code.name], reason.text, trailers)
            return call.response if call else None

        return answer

    def _begin_log(self, path: str, context: _Context) -> LoggedCall | None:
        if self._log is None:
            return None
        metadata: Any = context.invocation_metadata()
        call = self._log.begin(path, context.peer(), dict(metadata))
        request_fields.set(call.ids)  # in the context of this call's task
        context.set_trailing_metadata(((REQUEST_ID, call.ids["request_id"]),))
        return call


class GrpcioServer:
    """All services on grpc.aio, on the running event loop."""

    def __init__(self, router: Router, methods: Sequence[Method], config: ServerConfig) -> None:
        """Prepare.

        Raises:
            ConfigurationError: a certificate or a token can't be used.
        """
        self._config = config
        self._methods = methods
        self._log = open_access_log(config)
        self._credentials = server_credentials(config.security)
        self.loop = AsyncioLoop(router, methods)
        tokens = token_check(config.security)
        self._handlers = Handlers(methods, self.loop, router.metrics, tokens, self._log)
        options = _options(router, config)
        self._server = grpc.aio.server(handlers=(self._handlers,), options=options)

    async def start(self) -> str:
        host, port = self._config.host, self._config.port
        is_path = host.startswith("unix:")
        if not is_path and self._config.workers == 1:  # else the supervisor has reserved the port
            bind(host, port).close()
        address = host if is_path else with_port(host, port)
        if self._credentials is None:
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, self._credentials)
        await self._server.start()
        self.loop.start()
        return host if is_path else with_port(host, port)

    @property
    def num_calls(self) -> int:
        return self._handlers.num_active + self.loop.num_calls

    async def beat(self) -> None:
        """Return: the running event loop answers the calls."""

    async def drain(self, timeout_s: float) -> bool:
        """Close the port; see `ServerTransport`.

        Calls that are pending at a stop are answered CANCELLED (grpc #41785), so this ends at a
        moment without new calls: refused calls are held, since their callers retry at once.
        """
        self._handlers.refusal = Unavailable("the server is shutting down")
        self.loop.drain(self._handlers.refusal)
        if not await asyncio.to_thread(self.loop.drained.wait, timeout_s):
            return False
        self._handlers.closing = asyncio.Event()
        for _ in range(_MAX_LOOKS):
            num_begun = self._handlers.num_begun
            await asyncio.sleep(_QUIET_S)
            if num_begun == self._handlers.num_begun:
                break
        return True

    async def stop(self, grace_s: float) -> None:
        stopping = asyncio.create_task(self._server.stop(grace_s))
        await asyncio.sleep(_GOODBYE_S)
        if self._handlers.closing is not None:
            self._handlers.closing.set()
        await stopping
        self.loop.stop()
        if self._log is not None:
            await asyncio.to_thread(self._log.close)


def _options(router: Router, config: ServerConfig) -> list[tuple[str, int]]:
    """Return the limits of the transport."""
    max_bytes = max_message_bytes(router, config)
    return [
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.max_concurrent_streams", 1024),
        # Past these, 1,000 and 3,000 by default, core cancels waiting calls (grpc #34782).
        ("grpc.server.max_pending_requests", 65_536),
        ("grpc.server.max_pending_requests_hard_limit", 65_536),
        ("grpc.max_allowed_incoming_connections", 4096),
        ("grpc.server_handshake_timeout_ms", 10_000),  # the default of 120 s helps idle attackers
        ("grpc.max_connection_age_ms", round(config.max_connection_age_s * 1000) or 2**31 - 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),  # our clients' is 1.5 s
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.so_reuseport", int(config.workers > 1)),  # else any second server could share it
        # Identity and gzip, which core unpacks up to the longest message.
        ("grpc.compression_enabled_algorithms_bitset", 0b101),
        ("grpc.http2.bdp_probe", 0),  # core's own estimate grows while the event loop is busy
        ("grpc.http2.lookahead_bytes", 1 << 20),
    ]


def _as_grpcio_has_it(status: Status) -> list[tuple[str, str | bytes]]:
    """Return a status's trailers: binary ones as bytes, which the library encodes itself."""
    return [
        (name, base64.b64decode(text + "=" * (-len(text) % 4)) if name.endswith("-bin") else text)
        for name, text in status.metadata
    ]
