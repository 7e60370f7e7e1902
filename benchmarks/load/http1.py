"""Load over HTTP/1.1: plain connections that stay open, each with one call in flight."""

import selectors
import socket
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from time import perf_counter, process_time

import numpy as np

from benchmarks.load.loops import undisturbed
from benchmarks.load.trace import Deadline, Seconds, Trace

_READ_BYTES = 256 << 10
_TIMEOUT_S = 10.0
_PATIENCE_S = 2.0
"""How long the last calls of an open loop are waited for."""
_SELECT_S = 0.05
_SPIN_S = 0.0002
"""How near the next call must be for an open loop to stay awake: sleepers wake up that late."""
_OPEN_CONNECTIONS = 64
"""Of an open loop; a call for which all are busy waits, and its latency counts that."""
_END, _LENGTH = b"\r\n\r\n", b"\r\ncontent-length:"


@dataclass(frozen=True, slots=True)
class HttpRequest:
    """One HTTP request."""

    address: str
    """host:port."""
    message: bytes
    """Head and body."""


class Connection:
    """A connection that has had the request answered once, and then sends it again and again."""

    def __init__(self, request: HttpRequest) -> None:
        """Connect and have the request answered.

        Raises:
            OSError: nobody answers there, or not with status 200.
        """
        host, _, port = request.address.rpartition(":")
        self._socket = socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT_S)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._message, self._in = request.message, bytearray()
            self.send(0.0)
            while (status := self.receive()) is None:
                pass
            if status != 200:
                raise ConnectionError(f"{request.address} answers HTTP {status}")
            self._socket.setblocking(False)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    @property
    def is_blocked(self) -> bool:
        """Whether the socket has not taken the whole request."""
        return bool(self._out)

    def send(self, start_s: float) -> None:
        """Send the request; its latency counts from `start_s`."""
        self.start_s, self._out = start_s, memoryview(self._message)
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes."""
        with suppress(BlockingIOError):
            while self._out:
                self._out = self._out[self._socket.send(self._out) :]

    def receive(self) -> int | None:
        """Read once; return the status if the answer is whole, and keep its body in `body`."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return None
        if not data:
            raise ConnectionError("the server closed the connection")
        self._in += data
        end = self._in.find(_END)
        if end < 0:
            return None
        head = bytes(self._in[:end]).lower()
        size = int(head.partition(_LENGTH)[2].partition(b"\r\n")[0])
        begin = end + len(_END)
        if len(self._in) < begin + size:
            return None
        self.body = bytes(self._in[begin : begin + size])
        self._in = bytearray()
        return int(head[9:12])


def ask(request: HttpRequest) -> bytes:
    """Have a request answered; return the body.

    Raises:
        OSError: nobody answers there, or not with status 200.
    """
    with closing(Connection(request)) as connection:
        return connection.body


def closed(request: HttpRequest, in_flight: Sequence[int], begin_s: float, seconds: float) -> Trace:
    """Keep as many calls in flight as `in_flight` adds up to, each on a connection of its own.

    Args:
        request: what to ask.
        in_flight: numbers of calls.
        begin_s: when to begin, on the clock of `perf_counter`, which all processes share.
        seconds: how long.

    Raises:
        OSError: the server can't be reached, does not answer rightly, or closes a connection.
    """
    latencies_s: list[float] = []
    num_errors = 0
    with _connected(request, sum(in_flight)) as (selector, connections), undisturbed(begin_s):
        begin_s, cpu_s, idle = perf_counter(), process_time(), connections
        while (now_s := perf_counter()) < begin_s + seconds:
            for connection in idle:
                _send(selector, connection, now_s)
            idle = []
            for connection, status in _answered(selector, begin_s + seconds - now_s):
                latencies_s.append(perf_counter() - connection.start_s)
                num_errors += status != 200
                idle.append(connection)
        seconds, cpu_s = perf_counter() - begin_s, process_time() - cpu_s
    return Trace(
        generator="python", latencies_s=np.array(latencies_s), duration_s=seconds,
        num_errors=num_errors, busy=cpu_s / seconds,
    )  # fmt: skip


def open_loop(
    request: HttpRequest, offsets_s: Seconds, begin_s: float, connections: int, deadline: Deadline
) -> Trace:
    """Send a call at each offset from `begin_s`, or when a connection is free after it.

    Args:
        request: what to ask.
        offsets_s: ascending.
        begin_s: when to begin; see `closed`.
        connections: not used: with one call on each, there are as many as a search needs.
        deadline: only NONE is measured.

    Raises:
        OSError: see `closed`; or there is a deadline.
    """
    if deadline is not Deadline.NONE:
        raise OSError("calls with a deadline are measured over gRPC only")
    latencies_s: list[float] = []
    lag_s: list[float] = []
    num_errors = 0
    with _connected(request, _OPEN_CONNECTIONS) as (selector, every), undisturbed(begin_s):
        begin_s, cpu_s = perf_counter(), process_time()
        coming, due, free = deque((begin_s + offsets_s).tolist()), deque[float](), list(every)
        end_s = coming[-1] + _PATIENCE_S
        while (coming or len(free) < len(every)) and (now_s := perf_counter()) < end_s:
            while coming and coming[0] <= now_s:
                due.append(coming.popleft())
                lag_s.append(now_s - due[-1])
            while due and free:
                _send(selector, free.pop(), due.popleft())
            next_s = coming[0] if coming else end_s
            for connection, status in _answered(selector, next_s - perf_counter() - _SPIN_S):
                latencies_s.append(perf_counter() - connection.start_s)
                num_errors += status != 200
                free.append(connection)
        end_s = perf_counter()
        seconds, cpu_s = end_s - begin_s, process_time() - cpu_s
        unanswered = [each.start_s for each in every if each not in free] + [*due, *coming]
    latencies_s += [end_s - start_s for start_s in unanswered]
    return Trace(
        generator="python", latencies_s=np.array(latencies_s), duration_s=seconds,
        num_errors=num_errors + len(unanswered), lag_s=np.array(lag_s), busy=cpu_s / seconds,
    )  # fmt: skip


@contextmanager
def _connected(
    request: HttpRequest, number: int
) -> Iterator[tuple[selectors.BaseSelector, list[Connection]]]:
    """Open connections and register them; close all at the end."""
    with selectors.DefaultSelector() as selector, ExitStack() as stack:
        connections = []
        for _ in range(number):
            connections.append(stack.enter_context(closing(Connection(request))))
            selector.register(connections[-1], selectors.EVENT_READ)
        yield selector, connections


def _send(selector: selectors.BaseSelector, connection: Connection, start_s: float) -> None:
    connection.send(start_s)
    if connection.is_blocked:
        selector.modify(connection, selectors.EVENT_READ | selectors.EVENT_WRITE)


def _answered(
    selector: selectors.BaseSelector, timeout_s: float
) -> Iterator[tuple[Connection, int]]:
    """Wait for sockets; send and receive, and yield what was answered, and its status."""
    for key, mask in selector.select(min(_SELECT_S, max(0.0, timeout_s))):
        connection = key.fileobj
        assert isinstance(connection, Connection)
        if mask & selectors.EVENT_WRITE:
            connection.flush()
            if not connection.is_blocked:
                selector.modify(connection, selectors.EVENT_READ)
        if mask & selectors.EVENT_READ and (status := connection.receive()) is not None:
            yield connection, status
