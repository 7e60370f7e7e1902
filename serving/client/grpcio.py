"""Calls over grpcio: any target of gRPC's, several servers."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable
from functools import lru_cache
from typing import Any

import grpc

from serving.client import transport
from serving.client.addresses import grpc_target
from serving.client.credentials import Credentials
from serving.client.failures import trailers_failure
from serving.protocols.status import Failure, StatusCode

_SERVICE_CONFIG = json.dumps(
    {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
)
"""Calls take turns among the addresses that answer and say SERVING by Health.Watch: a server that
drains gets none. The client retries calls: gRPC's own retries end after five attempts, and stop for
all calls while more than half of them fail."""

_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", _SERVICE_CONFIG),
    # Servers of others may refuse pings that are so frequent: core then doubles the time.
    ("grpc.keepalive_time_ms", int(transport.KEEPALIVE_TIME_S * 1e3)),
    ("grpc.keepalive_timeout_ms", int(transport.KEEPALIVE_TIMEOUT_S * 1e3)),
    # The same for core's own pings: core merges ours with one that is in flight.
    ("grpc.http2.ping_timeout_ms", int(transport.KEEPALIVE_TIMEOUT_S * 1e3)),
    ("grpc.http2.max_pings_without_data", 0),  # no limit: a waiting call sends no data
    # A server that is back is found within one or two seconds, within five if packets are lost.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # how long an attempt to connect may take
    # Each client has its own connections: a new client does not inherit a dead one.
    ("grpc.use_local_subchannel_pool", 1),
)

_UNANSWERED = re.compile(
    "connections to all backends|failed to connect|errors resolving|DNS|Stream removed|"
    "Socket closed|recvmsg|ping|GOAWAY|Cancelling all calls"
)
"""Words of core's for a call that no server has answered; nothing else says so."""

_TOO_LONG = "CLIENT: Received message larger than max"
"""In core's text for an answer that is longer than the channel accepts; nothing else says so."""

_MAX_IN_FLIGHT = 512
"""Messages that an AsyncClient has in flight; further ones wait. Servers refuse streams past a
limit (ours past 1,024), and a client learns that limit only after its first burst."""


def _open_channel(target: str, credentials: Credentials, library: Any) -> Any:
    """Open a channel of `grpc`, or of `grpc.aio` for the running event loop.

    Raises:
        ConfigurationError, Unavailable: see `grpc_target`.
    """
    options = [*_OPTIONS, ("grpc.max_receive_message_length", transport.MAX_ANSWER_BYTES)]
    target, authority = grpc_target(target)
    if authority is not None:  # with TLS every certificate must have this name
        options.append(("grpc.default_authority", authority))
    if credentials.files is None:
        return library.insecure_channel(target, options=options)
    tls = grpc.ssl_channel_credentials(*credentials.files)
    return library.secure_channel(target, tls, options=options)


def _failure(error: Any) -> Failure:
    return _failure_of(error.code(), error.details(), error.trailing_metadata())


def _failure_of(code: Any, details: str | None, metadata: Any) -> Failure:
    text, trailers = details or "", tuple(metadata or ())
    found = trailers_failure(StatusCode[code.name], text, trailers)
    if not found.reason and _TOO_LONG in text:
        return transport.too_long()
    # A reason is a server's.
    is_answer = found.is_answer and (bool(found.reason) or not _UNANSWERED.match(text))
    return found._replace(is_answer=is_answer)


def _taken(take: Callable[[], bytes], cancel: Callable[[], object]) -> transport.Outcome:
    """Wait for a message of a call, on a thread; without one the call is cancelled."""
    try:
        return take()
    except StopIteration:
        return transport.ENDED
    except grpc.RpcError as err:
        return _failure(err)
    except grpc.FutureCancelledError:
        return transport.CUT_OFF
    except BaseException:  # KeyboardInterrupt
        cancel()
        raise


async def _awaited(message: Awaitable[transport.Outcome]) -> transport.Outcome:
    """Wait for a message of a call, in a task."""
    try:
        return await message
    except grpc.aio.AioRpcError as err:
        return _failure(err)
    except asyncio.CancelledError:
        # The task was cancelled, the channel was closed, or the status is CANCELLED.
        task = asyncio.current_task()
        if task is not None and task.cancelling() > 0:
            raise
        return transport.CUT_OFF


class _ThreadCall:
    """A call that a thread can wait for."""

    def __init__(self, future: Any) -> None:
        self._future = future
        self.cancel = future.cancel

    async def result(self) -> transport.Outcome:
        return _taken(self._future.result, self.cancel)


class _ThreadStream:
    """A call whose messages a thread can wait for."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.cancel = call.cancel

    async def next(self) -> transport.Outcome:
        return _taken(self._call.__next__, self.cancel)


class _LoopStream:
    """A call whose messages a task can wait for."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.cancel = call.cancel

    async def next(self) -> transport.Outcome:
        return await _awaited(self._read())

    async def _read(self) -> transport.Outcome:
        call = self._call
        data = await call.read()
        if data is not grpc.aio.EOF:
            found: bytes = data
            return found
        if await call.code() is grpc.StatusCode.OK:
            return transport.ENDED
        return _failure_of(await call.code(), await call.details(), await call.trailing_metadata())


class _LoopCall:
    """A call that a task can wait for."""

    def __init__(self, call: Any) -> None:
        self._call = call
        self.cancel = call.cancel

    async def result(self) -> transport.Outcome:
        return await _awaited(self._call)


class GrpcioTransport(transport.Transport):
    """Calls of threads over a channel."""

    def __init__(self, target: str, credentials: Credentials) -> None:
        self._credentials = credentials
        self._channel = _open_channel(target, credentials, grpc)
        self._stub = lru_cache(self._channel.unary_unary)
        self._stream_stub = lru_cache(self._channel.unary_stream)

    async def send(
        self, path: str, message: bytes, timeout_s: float, metadata: transport.Metadata = ()
    ) -> transport.PendingCall:
        """Start a call."""
        metadata = (*self._credentials.metadata, *metadata)
        try:
            return _ThreadCall(
                self._stub(path).future(message, timeout=timeout_s, metadata=metadata)
            )
        except ValueError:  # the channel was closed
            return transport.EndedCall(transport.CUT_OFF)

    async def exchange(
        self, path: str, message: bytes, timeout_s: float, metadata: transport.Metadata = ()
    ) -> transport.Outcome:
        """Start a call and wait for its end: on one thread, at a third less than by a future."""
        metadata = (*self._credentials.metadata, *metadata)
        try:
            data: bytes = self._stub(path)(message, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as err:
            return _failure(err)
        except ValueError:  # the channel was closed
            return transport.CUT_OFF
        return data

    async def stream(
        self, path: str, message: bytes, timeout_s: float, metadata: transport.Metadata = ()
    ) -> transport.PendingStream:
        """Start a call that any number of messages answer."""
        metadata = (*self._credentials.metadata, *metadata)
        try:
            call = self._stream_stub(path)(message, timeout=timeout_s, metadata=metadata)
        except ValueError:  # the channel was closed
            return transport.EndedCall(transport.CUT_OFF)
        return _ThreadStream(call)

    async def close(self) -> None:
        """End all calls, and the channel."""
        self._channel.close()


class GrpcioLoopTransport(transport.Transport):
    """Calls of an event loop over a channel."""

    def __init__(self, target: str, credentials: Credentials) -> None:
        self._credentials = credentials
        self._channel = _open_channel(target, credentials, grpc.aio)
        self._stub = lru_cache(self._channel.unary_unary)
        self._stream_stub = lru_cache(self._channel.unary_stream)
        self._slots = asyncio.Semaphore(_MAX_IN_FLIGHT)
        self._is_closed = False

    async def send(
        self, path: str, message: bytes, timeout_s: float, metadata: transport.Metadata = ()
    ) -> transport.PendingCall:
        """Start a call."""
        call = await self._begun(self._stub, path, message, timeout_s, metadata)
        return transport.EndedCall(transport.CUT_OFF) if call is None else _LoopCall(call)

    async def stream(
        self, path: str, message: bytes, timeout_s: float, metadata: transport.Metadata = ()
    ) -> transport.PendingStream:
        """Start a call that any number of messages answer."""
        call = await self._begun(self._stream_stub, path, message, timeout_s, metadata)
        return transport.EndedCall(transport.CUT_OFF) if call is None else _LoopStream(call)

    async def _begun(
        self, stub: Any, path: str, message: bytes, timeout_s: float, metadata: transport.Metadata
    ) -> Any:
        """Start a call once it may be in flight; None if the channel is closed."""
        slots, metadata = self._slots, (*self._credentials.metadata, *metadata)
        await slots.acquire()
        try:
            if self._is_closed:
                raise asyncio.CancelledError
            call = stub(path)(message, timeout=timeout_s, metadata=metadata)
        except BaseException:
            slots.release()
            if self._is_closed:
                return None
            raise
        call.add_done_callback(lambda _: slots.release())
        return call

    async def close(self) -> None:
        """End all calls, and the channel."""
        self._is_closed = True
        await self._channel.close()
