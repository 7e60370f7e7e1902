"""An `AsyncClient`'s calls over HTTP/2."""

import asyncio
import math
from collections.abc import Iterable
from typing import Any

import grpc

from serving.client.access import Access
from serving.client.calls import CUT_OFF, Failure
from serving.client.h2.connect import CONNECT_S, failure_of, session_of
from serving.client.h2.session import Call, Metadata, Session
from serving.client.h2.silence import Silence
from serving.client.place import Place
from serving.credentials.tls import NO_HTTP2
from serving.http2.frames import Http2Error


class LoopCall(Call):
    """A call that a task can wait for."""

    __slots__ = ("future", "link", "timer")

    def __init__(self, future: "asyncio.Future[bytes | Failure]") -> None:
        """Make a call that has not begun."""
        super().__init__()
        self.future = future
        self.link: _Link | None = None
        self.timer: asyncio.TimerHandle | None = None

    def end(self, outcome: bytes | Failure) -> None:
        """Take the outcome, unless there is one."""
        if self.timer is not None:
            self.timer.cancel()
        if not self.future.done():
            self.future.set_result(outcome)

    def cancel(self) -> None:
        """Forget the call, if it has not ended."""
        if self.link is not None and not self.future.done():
            self.link.cancel(self)
            self.end(CUT_OFF)


class _Link(asyncio.Protocol):
    """A connection of an event loop."""

    def __init__(self, session: Session) -> None:
        self.session = session
        self._loop = asyncio.get_running_loop()
        self._transport: Any = None
        self._is_due = False
        self._silence = Silence()
        self._guard: asyncio.TimerHandle | None = None

    @property
    def is_usable(self) -> bool:
        return not self.session.is_ending

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        tls = transport.get_extra_info("ssl_object")
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self.fail((grpc.StatusCode.UNAVAILABLE, f"TLS {NO_HTTP2}"))
        self._flush()

    def data_received(self, data: bytes) -> None:
        try:
            ended = self.session.receive(data)
        except Http2Error as err:
            self.fail((grpc.StatusCode.UNAVAILABLE, f"the connection broke: {err}"))
            return
        self._silence.end(self._loop.time(), self.session.num_calls)
        _end(ended)
        self._flush()
        if self.session.is_ending and not self.session.num_calls:
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        reason = str(exc) if exc else "the server closed the connection"
        self.fail((grpc.StatusCode.UNAVAILABLE, reason))

    def start(
        self, call: LoopCall, path: str, message: bytes, timeout_s: float, metadata: Metadata
    ) -> None:
        """Begin a call; what tasks start in one turn of the loop is written at once."""
        self._silence.begin(self._loop.time())
        if self._guard is None:
            self._guard = self._loop.call_at(self._silence.due_s(), self._check_alive)
        self.session.start(call, path, message, timeout_s, metadata)
        if call.outcome is not None:
            call.end(call.outcome)
            return
        call.link = self
        self._flush_soon()

    def cancel(self, call: LoopCall) -> None:
        """Reset a call."""
        self.session.cancel(call)
        self._flush_soon()

    def fail(self, failure: Failure) -> None:
        """End all calls, and the connection."""
        _end(self.session.fail_all(failure))
        if self._guard is not None:
            self._guard.cancel()
        if self._transport is not None:
            self._transport.abort()

    def _flush_soon(self) -> None:
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._flush)

    def _flush(self) -> None:
        self._is_due = False
        if data := self.session.data_to_send():
            self._transport.write(data)

    def _check_alive(self) -> None:
        """Ask a silent server for a sign of life; give it up if there is none."""
        self._guard = None
        if not self.session.num_calls:
            return
        now_s = self._loop.time()
        if self._silence.is_death(now_s):
            self.fail((grpc.StatusCode.UNAVAILABLE, "the server is silent"))
            return
        if self._silence.ask(now_s):
            self.session.ping()
            self._flush()
        self._guard = self._loop.call_at(self._silence.due_s(), self._check_alive)


class H2LoopCalls:
    """Calls of one event loop over the newest connection; older ones end with their calls."""

    def __init__(self, place: Place, access: Access) -> None:
        """Prepare; the first call connects."""
        self._place = place
        self._access = access
        self._loop = asyncio.get_running_loop()
        self._link: _Link | None = None
        self._links: set[_Link] = set()
        self._connecting: asyncio.Task[_Link] | None = None
        self._is_closed = False

    async def send(self, path: str, message: bytes, timeout_s: float) -> LoopCall:
        """Start a call."""
        call = LoopCall(self._loop.create_future())
        link = self._link
        if link is None or not link.is_usable:
            begin_s = self._loop.time()
            try:
                link = await asyncio.wait_for(asyncio.shield(self._connect()), timeout_s)
            except asyncio.CancelledError:
                if self._is_closed and not _is_cancelled():
                    call.end(CUT_OFF)
                    return call
                raise
            except OSError as err:
                late = isinstance(err, TimeoutError) and timeout_s < CONNECT_S
                code = grpc.StatusCode.DEADLINE_EXCEEDED
                call.end((code, "no connection within the timeout") if late else failure_of(err))
                return call
            timeout_s = max(0.0, timeout_s - (self._loop.time() - begin_s))
        if self._is_closed:
            call.end(CUT_OFF)
            return call
        if timeout_s < math.inf:
            call.timer = self._loop.call_later(timeout_s, self._expire, call)
        link.start(call, path, message, timeout_s, self._access.metadata)
        return call

    async def outcome(self, call: LoopCall) -> bytes | Failure:
        """Wait for the end of a call."""
        try:
            return await call.future
        except asyncio.CancelledError:
            if call.link is not None:
                call.link.cancel(call)
            if call.timer is not None:
                call.timer.cancel()
            raise

    async def close(self) -> None:
        """End all calls, and the connections."""
        self._is_closed = True
        if self._connecting is not None:
            self._connecting.cancel()
        for link in list(self._links):
            link.fail(CUT_OFF)

    def _connect(self) -> "asyncio.Task[_Link]":
        if self._connecting is None or self._connecting.done():
            self._connecting = self._loop.create_task(self._open())
        return self._connecting

    async def _open(self) -> _Link:
        place, context = self._place, self._access.tls_context()
        async with asyncio.timeout(CONNECT_S):
            _, link = await self._loop.create_connection(
                lambda: _Link(session_of(place, self._access)),
                place.host, place.port, ssl=context,
                server_hostname=place.host if context else None,
            )  # fmt: skip
        self._links = {each for each in self._links if each.session.num_calls} | {link}
        self._link = link
        return link

    def _expire(self, call: LoopCall) -> None:
        if not call.future.done():
            if call.link is not None:
                call.link.cancel(call)
            call.end((grpc.StatusCode.DEADLINE_EXCEEDED, "no answer within the timeout"))


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _end(calls: Iterable[Call]) -> None:
    for call in calls:
        assert isinstance(call, LoopCall)
        assert call.outcome is not None
        call.end(call.outcome)
