"""Calls over grpcio: any target of gRPC's, several servers."""

import asyncio
import json
import re
from _thread import allocate_lock
from collections.abc import Generator
from typing import Any

import grpc

from serving.client.access import Access
from serving.client.addresses import target_of
from serving.client.calls import (
    CUT_OFF,
    KEEPALIVE_TIME_S,
    KEEPALIVE_TIMEOUT_S,
    PUSHBACK,
    Failure,
)

_SERVICE_CONFIG = json.dumps(
    {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
)
"""Calls take turns among the addresses that answer and say SERVING by Health.Watch: a server that
drains gets none. `Attempts` retries calls: gRPC's own retries end after five attempts, and stop for
all calls while more than half of them fail."""

_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.max_receive_message_length", 16 << 20),
    # Servers of others may refuse pings that are so frequent: core then doubles the time.
    ("grpc.keepalive_time_ms", int(KEEPALIVE_TIME_S * 1e3)),
    ("grpc.keepalive_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1e3)),
    # The same for core's own pings: core merges ours with one that is in flight.
    ("grpc.http2.ping_timeout_ms", int(KEEPALIVE_TIMEOUT_S * 1e3)),
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

_MAX_IN_FLIGHT = 512
"""Messages that an AsyncClient has in flight; further ones wait. Servers refuse streams past a
limit (ours past 1,024), and a client learns that limit only after its first burst."""


def _open_channel(access: Access, library: Any, address: str) -> Any:
    """Open a channel of `grpc`, or of `grpc.aio` for the running event loop.

    Raises:
        ConfigurationError, Unavailable: see `target_of`.
    """
    options = [*_OPTIONS]
    target, authority = target_of(address)
    if authority is not None:  # with TLS every certificate must have this name
        options.append(("grpc.default_authority", authority))
    if access.files is None:
        return library.insecure_channel(target, options=options)
    credentials = grpc.ssl_channel_credentials(*access.files)
    return library.secure_channel(target, credentials, options=options)


class GrpcioCalls:
    """Calls of threads over a channel."""

    def __init__(self, address: str, access: Access) -> None:
        """Open the channel."""
        self._access = access
        self._channel = _open_channel(access, grpc, address)
        self._lock = allocate_lock()
        self._stubs: dict[str, Any] = {}

    def send(self, path: str, message: bytes, timeout_s: float) -> Any:
        """Start a call; return an object for `outcome`, which has `cancel`."""
        stub = self._stubs.get(path) or self._stub(path)
        try:
            return stub.future(message, timeout=timeout_s, metadata=self._access.metadata)
        except ValueError:  # the channel was closed
            return _Ended()

    def outcome(self, call: Any) -> bytes | Failure:
        """Wait for the end of a call."""
        try:
            data: bytes = call.result()
        except grpc.RpcError as err:
            return _failure(err)
        except grpc.FutureCancelledError:
            return CUT_OFF
        except BaseException:  # KeyboardInterrupt
            call.cancel()
            raise
        return data

    def exchange(self, path: str, message: bytes, timeout_s: float) -> bytes | Failure:
        """Start a call and wait for its end: on one thread, at a third less than by a future."""
        stub = self._stubs.get(path) or self._stub(path)
        try:
            data: bytes = stub(message, timeout=timeout_s, metadata=self._access.metadata)
        except grpc.RpcError as err:
            return _failure(err)
        except ValueError:  # the channel was closed
            return CUT_OFF
        return data

    def close(self) -> None:
        """End all calls, and the channel."""
        self._channel.close()

    def _stub(self, path: str) -> Any:
        with self._lock:
            return self._stubs.setdefault(path, self._channel.unary_unary(path))


def _failure(error: Any) -> Failure:
    """Return how a call has ended."""
    details = error.details() or ""
    is_answer = not any(key == PUSHBACK for key, _ in error.trailing_metadata() or ())
    return error.code(), details, is_answer and not _UNANSWERED.match(details)


class _Ended:
    """A call of a channel that was closed."""

    def result(self) -> bytes:
        raise grpc.FutureCancelledError

    def __await__(self) -> Generator[None, None, bytes]:
        raise asyncio.CancelledError
        yield

    def cancel(self) -> None:
        pass


class GrpcioLoopCalls:
    """Calls of an event loop over a channel."""

    def __init__(self, address: str, access: Access) -> None:
        """Open the channel."""
        self._access = access
        self._channel = _open_channel(access, grpc.aio, address)
        self._slots = asyncio.Semaphore(_MAX_IN_FLIGHT)
        self._stubs: dict[str, Any] = {}
        self._is_closed = False

    async def send(self, path: str, message: bytes, timeout_s: float) -> Any:
        """Start a call; return an object for `outcome`, which has `cancel`."""
        slots = self._slots
        stub = self._stubs.get(path)
        stub = stub or self._stubs.setdefault(path, self._channel.unary_unary(path))
        await slots.acquire()
        try:
            if self._is_closed:
                raise asyncio.CancelledError
            call = stub(message, timeout=timeout_s, metadata=self._access.metadata)
        except BaseException:
            slots.release()
            if self._is_closed:
                return _Ended()
            raise
        call.add_done_callback(lambda _: slots.release())
        return call

    async def outcome(self, call: Any) -> bytes | Failure:
        """Wait for the end of a call."""
        try:
            data: bytes = await call
        except grpc.aio.AioRpcError as err:
            return _failure(err)
        except asyncio.CancelledError:
            # The task was cancelled, the channel was closed, or the status is CANCELLED.
            task = asyncio.current_task()
            if task is not None and task.cancelling() > 0:
                raise
            return CUT_OFF
        return data

    async def close(self) -> None:
        """End all calls, and the channel."""
        self._is_closed = True
        await self._channel.close()
