"""An `AsyncClient`'s calls over HTTP/2."""

import asyncio
import math
import ssl
from collections.abc import Callable
from functools import wraps
from typing import TypeVar, cast

from serving.client import transport
from serving.client.addresses import Address
from serving.client.credentials import Credentials
from serving.client.h2.session import (
    CONNECT_S,
    STREAMS,
    ClientCall,
    Messages,
    Session,
    failure_of,
)
from serving.client.transport import Metadata
from serving.http2 import Http2Error, Limits
from serving.protocols.status import Failure, StatusCode
from serving.security.tls import NO_HTTP2

_Call = TypeVar("_Call", bound=ClientCall)


class TaskCall(ClientCall):
    """A call that a task can wait for."""

    __slots__ = ("_connection", "_future")

    def __init__(self, deadline_s: float, connection: "_LoopConnection") -> None:
        super().__init__(deadline_s)
        self._connection = connection
        self._future: asyncio.Future[transport.Outcome] = connection.loop.create_future()

    def end(self, outcome: transport.Outcome) -> None:
        """Take the outcome, unless there is one."""
        if not self._future.done():
            self._future.set_result(outcome)

    def cancel(self) -> None:
        """Forget the call, if it has not ended."""
        self._connection.cancel(self)
        self.end(transport.CUT_OFF)

    async def result(self) -> transport.Outcome:
        """Wait for the end of the call."""
        try:
            return await self._future
        except asyncio.CancelledError:
            self.cancel()
            raise


class TaskStream(ClientCall):
    """A call whose messages a task can wait for."""

    __slots__ = ("_connection", "_news")

    def __init__(self, deadline_s: float, connection: "_LoopConnection") -> None:
        super().__init__(deadline_s, Messages())
        self._connection = connection
        self._news = asyncio.Event()

    def end(self, outcome: transport.Outcome) -> None:
        """Take the end, behind the messages."""
        if self.outcome is None:
            self.outcome = outcome
            self._news.set()

    def note_message(self) -> None:
        self._news.set()

    def cancel(self) -> None:
        """Forget the call, if it has not ended."""
        if self.outcome is None:
            self._connection.cancel(self)
            self.end(transport.CUT_OFF)

    async def next(self) -> transport.Outcome:
        """Wait for the next message, or the end."""
        while (message := self._connection.take_message(self)) is None:
            if self.outcome is not None:
                return self.outcome
            self._news.clear()
            try:
                await self._news.wait()
            except asyncio.CancelledError:
                self.cancel()
                raise
        return message


_Callback = TypeVar("_Callback", bound=Callable[..., None])


def _fails_calls(callback: _Callback) -> _Callback:
    """Have an exception of a connection's callback end its calls at once.

    A loop only logs it: the calls would wait for a server that has nothing to do with it.
    """

    @wraps(callback)
    def run(connection: "_LoopConnection", *args: object) -> None:
        try:
            callback(connection, *args)
        except Exception as err:
            # Permanent: the next connection would end in the same way.
            text = f"the client failed: {type(err).__name__}: {err}".removesuffix(": ")
            connection.fail(Failure(StatusCode.UNAVAILABLE, text, is_permanent=True))
            context = {"message": text, "exception": err, "protocol": connection}
            connection.loop.call_exception_handler(context)

    return cast(_Callback, run)


class _LoopConnection(asyncio.Protocol):
    """A connection of an event loop."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self.loop = asyncio.get_running_loop()
        self._transport: asyncio.Transport | None = None
        self._is_flush_due = False
        self._timer: asyncio.TimerHandle | None = None

    @_fails_calls
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # Not checked by its class: uvloop's transports have another one.
        self._transport = cast(asyncio.Transport, transport)
        self._flush()

    @_fails_calls
    def data_received(self, data: bytes) -> None:
        try:
            self.session.receive(data)
        except Http2Error as err:
            self.fail(Failure(StatusCode.UNAVAILABLE, f"the connection broke: {err}"))
            return
        self._flush()
        if self.session.failure is not None and not self.session.calls:
            self.abort()

    @_fails_calls
    def connection_lost(self, exc: Exception | None) -> None:
        reason = str(exc) if exc else "the server closed the connection"
        self.fail(Failure(StatusCode.UNAVAILABLE, reason))

    def start(
        self,
        path: str,
        message: bytes,
        metadata: Metadata,
        deadline_s: float,
        kind: "Callable[[float, _LoopConnection], _Call]" = TaskCall,  # type: ignore[assignment]
    ) -> _Call:
        """Begin a call; calls begun in one turn of the loop are written together."""
        call = kind(deadline_s, self)
        self.session.start(call, path, message, metadata)
        self._watch(deadline_s)
        self._flush_soon()
        return call

    def take_message(self, call: TaskStream) -> transport.Outcome | None:
        """Take a call's next message, if it has come."""
        message = self.session.take_message(call)
        if message is not None:
            self._flush_soon()
        return message

    def cancel(self, call: ClientCall) -> None:
        """Reset a call."""
        self.session.cancel(call)
        self._flush_soon()

    def fail(self, failure: Failure) -> None:
        """End all calls, and the connection."""
        self.session.fail_all(failure)
        self.abort()

    def abort(self) -> None:
        """Close the connection without a farewell."""
        if self._timer is not None:
            self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()

    def _flush_soon(self) -> None:
        if not self._is_flush_due:
            self._is_flush_due = True
            self.loop.call_soon(self._flush)

    @_fails_calls
    def _flush(self) -> None:
        self._is_flush_due = False
        if self._transport is not None and (data := self.session.data_to_send()):
            self._transport.write(data)

    def _watch(self, deadline_s: float) -> None:
        """Have `_check` called at a deadline, or earlier if the server is silent."""
        due_s = min(deadline_s, self.session.keepalive.due_s())
        if self._timer is not None:
            if self._timer.when() <= due_s:
                return
            self._timer.cancel()
        if self.session.calls:
            self._timer = self.loop.call_at(due_s, self._check)

    @_fails_calls
    def _check(self) -> None:
        """End calls whose time is over, and the connection of a server that is gone."""
        self._timer, now_s = None, self.loop.time()
        calls = self.session.calls
        for call in [each for each in calls.values() if each.deadline_s <= now_s]:
            self.session.cancel(call)
            call.end(transport.LATE)
        if calls and not self.session.is_alive():
            self.fail(Failure(StatusCode.UNAVAILABLE, "the server is silent"))
            return
        self._flush()
        self._watch(min([call.deadline_s for call in calls.values()], default=math.inf))


class ReconnectingLoopChannel(transport.Transport):
    """Calls of one event loop over the newest connection; older ones end with their calls."""

    def __init__(
        self, address: Address, credentials: Credentials, limits: Limits | None = None
    ) -> None:
        self._address, self._limits = address, limits
        self._credentials = credentials
        self._loop = asyncio.get_running_loop()
        self._connection: _LoopConnection | None = None
        self._connections: set[_LoopConnection] = set()
        self._connecting: asyncio.Task[_LoopConnection] | None = None
        self._is_closed = False
        self._streams = (
            ReconnectingLoopChannel(address, credentials, STREAMS) if limits is None else None
        )
        """A connection of their own for calls that many messages answer."""

    async def send(
        self, path: str, message: bytes, timeout_s: float, metadata: Metadata = ()
    ) -> transport.PendingCall:
        """Start a call."""
        return await self._send(TaskCall, path, message, timeout_s, metadata)

    async def stream(
        self, path: str, message: bytes, timeout_s: float, metadata: Metadata = ()
    ) -> transport.PendingStream:
        """Start a call that any number of messages answer."""
        streams = self._streams or self
        return await streams._send(TaskStream, path, message, timeout_s, metadata)

    async def _send(
        self,
        kind: Callable[[float, _LoopConnection], _Call],
        path: str,
        message: bytes,
        timeout_s: float,
        metadata: Metadata,
    ) -> _Call | transport.EndedCall:
        deadline_s = self._loop.time() + timeout_s
        connection: _LoopConnection | Failure | None = self._connection
        if not isinstance(connection, _LoopConnection) or connection.session.failure is not None:
            connection = await self._connected(deadline_s)
            if not isinstance(connection, _LoopConnection):
                return transport.EndedCall(connection)
        all_metadata = self._credentials.metadata
        if metadata:
            all_metadata = (*all_metadata, *metadata)
        return connection.start(path, message, all_metadata, deadline_s, kind)

    async def close(self) -> None:
        """End all calls, and the connections."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        for connection in list(self._connections):
            connection.fail(transport.CUT_OFF)
        if self._streams is not None:
            await self._streams.close()

    async def _connected(self, deadline_s: float) -> _LoopConnection | Failure:
        """Connect, or wait for the task that does."""
        if self._is_closed:
            return transport.CUT_OFF
        if self._connecting is None or self._connecting.done():
            self._connecting = self._loop.create_task(self._connect())
            # Its failure is known then, though all callers may have given up.
            self._connecting.add_done_callback(lambda task: task.cancelled() or task.exception())
        try:
            async with asyncio.timeout_at(deadline_s):
                return await asyncio.shield(self._connecting)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if not self._is_closed or (task is not None and task.cancelling()):
                raise
            return transport.CUT_OFF
        except OSError as err:
            is_late = isinstance(err, TimeoutError) and self._loop.time() >= deadline_s
            return transport.LATE if is_late else failure_of(err)

    async def _connect(self) -> _LoopConnection:
        address, context = self._address, self._credentials.tls_context()
        async with asyncio.timeout(CONNECT_S):
            opened, connection = await self._loop.create_connection(
                lambda: _LoopConnection(
                    Session(address.authority, self._credentials.scheme, self._limits)
                ),
                address.host,
                address.port,
                ssl=context,
                server_hostname=address.host if context else None,
            )
        if context and opened.get_extra_info("ssl_object").selected_alpn_protocol() != "h2":
            opened.abort()
            raise ssl.SSLError(NO_HTTP2)
        self._connections = {each for each in self._connections if each.session.calls}
        self._connections.add(connection)
        self._connection = connection
        return connection
