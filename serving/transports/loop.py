"""One thread: read all that is ready, make one batch of it, run it, answer all, write.

The next batch gathers in the kernel while this one runs, so batches grow with the load, and a lone
caller is answered by the thread that read its call.
"""

import logging
import math
import selectors
import threading
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from serving.batching.entry import Entry
from serving.errors import ServingError
from serving.http2 import Http2Error
from serving.protocols.method import BatchedUnary, Method
from serving.router import Router
from serving.system.host import Host
from serving.transports.calls import LoopCalls
from serving.transports.draining import Drain
from serving.transports.peer import (
    LEAST_BYTES,
    MAX_COST_PER_BYTE_S,
    READ,
    TURN_S,
    WRITE,
    Peer,
    State,
)
from serving.transports.port import Port
from serving.transports.sweeping import sweep

_log = logging.getLogger(__name__)
_POLL_S = 60e-6
"""How long the loop polls, once it has written, before it sleeps: a core takes tens of microseconds
to wake up, and a lone caller's next call comes within that time."""
_TICK_S = 0.01
"""How often the loop looks for deadlines that have passed, while one is near."""
_SWEEP_S = 1.0
"""How often it looks for connections that are idle, stuck or old."""
_ROUND_S = 0.01
"""How long a round reads at most, and then runs batches: under overload either alone would take all
its time. A quarter of the service's objective where that is less."""
_CLOSING_S = 1.0
"""How long the end of a drain waits for peers to take their last answers and close; not for those
who had none to wait for, and had sent nothing for that long when it began, and since."""
_DEFERRED_S = 2e-3
"""How long a round works on deferred tasks, such as requests that HTTP callers have sent ahead."""
_TELLING_BYTES = 1024
"""Shorter reads do not show the cost of a peer's bytes: any read takes some microseconds."""
_MAX_READ_S = 2e-4
"""The time that a turn of any length may take. One that takes more, and more than even the tiniest
frames would, was interrupted; charged in full, it would have its peer wait as long for each other
busy one."""
_READ_BYTES = 512 << 10
"""Bytes read of one connection before the others' turn, some 600 calls of one small row."""


class Reader:
    """Reads what is ready, and gives those who cost much their turn later."""

    def __init__(
        self, clock: Callable[[], float], round_s: float, schedule_flush: Callable[[Peer], None]
    ) -> None:
        """Read for some `round_s` seconds a round, and then have peers flushed."""
        self._clock = clock
        self._round_s = round_s
        self._schedule_flush = schedule_flush
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self.is_overrun = False
        """Whether the last round did not read all that was ready."""
        self._turns_s = self._accept_start_tag_s = 0.0
        """The clock of turns: where not all connections can be read in a round, the least tags
        are first (start-time fair queueing)."""

    def read(self, ready: list[tuple[selectors.SelectorKey, int]], now_s: float) -> None:
        """Read the connections that are ready, for some 10 ms in all.

        Where that was not enough for all, those who have taken the least time go first.
        """
        # Sorted only after a round that ended early: else all are read, in any order.
        if self.is_overrun:
            ready.sort(key=self._start_tag_s)
        begin_s = now_s
        for key, mask in ready:
            connection = key.data
            if connection is None:  # another thread has woken the loop
                key.fileobj.recv(64)  # type: ignore[union-attr]
                continue
            if connection.__class__ is not Peer:
                connection.accept(now_s, self._turns_s)
                end_s = self._clock()
                self._accept_start_tag_s = self._turns_s + end_s - begin_s
            elif connection.state == State.CLOSED:  # in this round, for a new one
                continue
            else:
                num_bytes = self._serve(connection, mask, now_s)
                end_s = self._clock()
                turn_s = min(end_s - begin_s, _MAX_READ_S + num_bytes * MAX_COST_PER_BYTE_S)
                if num_bytes >= _TELLING_BYTES:
                    connection.cost_per_byte_s += (
                        turn_s / num_bytes - connection.cost_per_byte_s
                    ) / 4
                # A peer that was idle begins at the present time: it saves nothing up.
                self._turns_s = max(self._turns_s, connection.start_tag_s)
                connection.start_tag_s = self._turns_s + turn_s
            begin_s = end_s
            if begin_s - now_s > self._round_s:
                break
        self.is_overrun = begin_s - now_s > self._round_s

    def _start_tag_s(self, ready: tuple[selectors.SelectorKey, int]) -> float:
        """Return when a turn is due."""
        data = ready[0].data
        if isinstance(data, Peer):
            return data.start_tag_s
        return self._accept_start_tag_s if isinstance(data, Port) else 0.0

    def _serve(self, connection: Peer, mask: int, now_s: float) -> int:
        """Read a connection's bytes, and its calls; return the number of bytes."""
        num_bytes = 0
        port: Port = connection.port
        try:
            if mask & READ and not connection.is_paused:
                data = self._receive(connection, now_s)
                if data is None:
                    port.abort(connection)
                    return 0
                num_bytes = len(data)
                if data and connection.state >= State.LAST:  # dropped
                    connection.active_s = now_s
                elif data:
                    port.receive(connection, data, now_s)
            self._schedule_flush(connection)  # if it is writable, the flush sends the rest
        except (Http2Error, OSError):
            port.leave(connection)
        except Exception:  # a bug of ours: it ends this connection, and never the loop
            _log.exception("a connection failed")
            port.abort(connection)
        return num_bytes

    def _receive(self, peer: Peer, now_s: float) -> bytes | None:
        """Read the bytes that have arrived, at most a buffer full; None if the peer has left.

        Raises:
            OSError: the socket or its TLS failed.
        """
        buffer = self._buffer[: max(LEAST_BYTES, int(TURN_S / peer.cost_per_byte_s))]
        try:
            num_bytes = peer.socket.recv_into(buffer)
        except BlockingIOError:
            peer.behind_s = math.inf
            return b""
        if num_bytes < len(buffer):
            peer.behind_s = math.inf
        elif peer.behind_s == math.inf:
            peer.behind_s = now_s
        if not num_bytes:
            return None
        # Bytes to be dropped need not be TLS: after a failed handshake, it may fail again.
        if peer.tls is None or peer.state >= State.LAST:
            return bytes(buffer[:num_bytes])
        return peer.tls.decrypt(buffer[:num_bytes])


class LoopPhase:
    """How far the life of a loop is; see `Loop`."""

    SERVING = 0
    DRAINING = 1
    CLOSING = 2
    CLOSED = 3


class Loop:
    """Serves the connections of some listening sockets.

    Its phase only grows:

        phase      entered by                               new calls      it ends with
        SERVING    `__init__`                               are accepted   any of those below
        DRAINING   `drain`; `drained` is set once all       are refused    `stop`
                   accepted calls are answered
        CLOSING    `stop`: the ports are closed, and the    are not read   the last peer's end, or
                   peers told to leave                                     the end of a second
        CLOSED     the end of the thread
    """

    def __init__(
        self,
        router: Router,
        methods: Iterable[Method] = (),
        *,
        poll: bool,
        host: Host,
        name: str = "h2",
    ) -> None:
        """Prepare; `start` begins, on a thread of that name.

        Args:
            router: the models, which belong to this loop.
            methods: those whose calls it reads.
            poll: whether it may poll for a moment before it sleeps.
            host: its machine.
            name: its thread's.
        """
        self._router = router
        self._methods = methods
        self._poll_s = _POLL_S if poll else 0.0
        self._round_s = min(_ROUND_S, router.batching.slo_s / 4)
        self.clock = host.clock
        self.selector = host.selector()
        """Watches the listeners and the connections: they are the keys' data."""
        self._ports: tuple[Port, ...] = ()
        self._dirty: dict[Peer, None] = {}
        """Connections to be flushed at the end of the round."""
        self.schedule_flush: Callable[[Peer], None] = self._dirty.setdefault
        self.calls = LoopCalls(self.clock, self.hurry)
        """The calls of all ports."""
        self._due: deque[Entry] = deque()
        """Models whose calls wait, the next one's turn first."""
        self._deferred: deque[Callable[[], None]] = deque()
        self.schedule, self.defer = self._due.append, self._deferred.append
        """Those of an `Owner`: have an entry's turn taken, and a function called, soon."""
        self._posted: deque[Callable[[], None]] = deque()
        self._waker, self._woken = host.socketpair()
        self._is_awake = True  # `post` need not wake the thread
        self._now_s = self.clock()  # when the last round began
        self._poll_until_s = 0.0
        self._handed_out: Entry | None = None
        """The last one whose calls were given to runners, which may need this core."""
        self.phase: int = LoopPhase.SERVING
        self._drain: Drain | None = None
        """From the phase DRAINING on."""
        self._closing_since_s = math.inf
        """When the phase CLOSING began."""
        self._reader = Reader(self.clock, self._round_s, self.schedule_flush)
        self._next_tick_s = self._next_sweep_s = 0.0
        self.drained = threading.Event()
        """Set once a drain has answered all that was accepted."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.selector.register(self._woken, selectors.EVENT_READ, None)
        router.attach(self)

    def add(self, port: Port) -> None:
        """Serve a listening socket, too; on the loop's thread, or before it starts."""
        self._ports += (port,)
        budget = self.calls.budget
        budget.max_bytes = min(budget.max_bytes, port.limits.max_buffered_bytes)
        budget.free_bytes = min(budget.free_bytes, port.limits.http2.stream_window_bytes)
        port.listen()
        if self._drain is not None:
            port.drain(self._drain.refusal)

    def start(self) -> None:
        """Begin to serve, on a thread of its own."""
        self._thread.start()

    def call(self, task: Callable[[], None]) -> None:
        """Run a function on the loop's thread, and wait for its end."""
        is_over = threading.Event()
        self.post(task)
        self.post(is_over.set)
        is_over.wait()

    @property
    def num_calls(self) -> int:
        """Calls in progress; from any thread, so not exact while they change."""
        return sum(len(peer.streams) for port in self._ports for peer in port)

    @property
    def keeps_headers(self) -> bool:
        """Whether a handler wants the headers of calls."""
        return self._router.keeps_headers

    def post(self, task: Callable[[], None]) -> None:
        """Run a function on the loop's thread, from any thread."""
        self._posted.append(task)
        if not self._is_awake:
            self._is_awake = True
            self._wake()

    def _wake(self) -> None:
        self._waker.send(b"\0")

    def watch(self, sock: Any, mask: int, watcher: Any) -> None:
        there = self.selector.get_map()
        known = there.get(sock) if there else None  # it is closed
        if known is None and mask:
            self.selector.register(sock, mask, watcher)
        elif known is not None and not mask:
            self.selector.unregister(sock)
        elif known is not None and known.events != mask:
            self.selector.modify(sock, mask, watcher)

    def forget_layouts(self) -> None:
        for port in self._ports:
            port.is_stale = port.keeps_layouts
        for method in self._methods:
            if isinstance(method, BatchedUnary):
                method.known.clear()

    def hurry(self, delay_s: float = _TICK_S) -> None:
        """Do due work so soon: it became due after the last look."""
        self._next_tick_s = min(self._next_tick_s, self._now_s + delay_s)

    def _run(self) -> None:
        while not self._have_left():
            try:
                self.turn(self.selector.select(self.timeout_s()))
            except Exception:  # a bug of ours: it ends this round, and never the loop
                _log.exception("a turn of the loop failed")
        for port in self._ports:
            port.end_all()

    def turn(self, ready: list[tuple[selectors.SelectorKey, int]]) -> None:
        """Read the connections that are ready, run the queue, write."""
        self._is_awake = True
        while self._posted:  # first: calls that a drain refuses may be about to be read
            self._posted.popleft()()
        self._now_s = now_s = self.clock()
        if ready or self._deferred:  # and not while it polls: each look costs a `stat`
            for port in self._ports:
                if port.has_tokens or port.is_stale:
                    port.check()
        if ready:
            self._reader.read(ready, now_s)
        if self._due:
            self._run_waiting(now_s)
        if self._dirty or self._deferred:
            self._flush()
            self._poll_until_s = self.clock() + self._poll_s
        if now_s >= self._next_tick_s:
            self._tick(now_s)

    def timeout_s(self) -> float:
        """Return how long the loop may sleep; from then on `post` wakes it."""
        if self._dirty or self._deferred:  # by a tick, or because others had their turn
            return 0.0
        timeout_s = max(0.0, self._next_tick_s - self._now_s)
        if self._due:
            delays_s = (b.delay_s(self._now_s) if b.max_delay_s else 0.0 for b in self._due)
            timeout_s = min(timeout_s, *delays_s)
        elif (
            self._poll_s
            and self._now_s < self._poll_until_s
            and not (self._handed_out and self._handed_out.is_busy)
        ):
            return 0.0
        # First the flag, then the look: a post in between wakes the loop or is seen here.
        self._is_awake = not timeout_s
        return 0.0 if self._posted else timeout_s

    def _run_waiting(self, now_s: float) -> None:
        """Run waiting calls, a batch of each model in turn, for some 10 ms in all.

        Where a round did not read all, one batch must do: callers' next calls wait unread.
        """
        due, num_waiting = self._due, 0
        end_s = now_s if self._reader.is_overrun else now_s + self._round_s
        while len(due) > num_waiting:
            entry = due.popleft()
            if entry.max_delay_s and entry.delay_s(now_s):
                due.append(entry)
                num_waiting += 1
                continue
            if entry.turn(now_s):  # their deadlines may come meanwhile
                self.hurry()
                self._handed_out = entry
            if not due:
                return
            now_s = self.clock()
            if now_s >= end_s:
                return
            self._flush()

    def _flush(self) -> None:
        dirty = [*self._dirty]
        self._dirty.clear()
        for peer in dirty:
            if peer.state == State.CLOSED:
                continue
            if not peer.flush():
                peer.port.abort(peer)
                continue
            mask = 0 if peer.is_paused else READ
            if peer.output:
                mask = WRITE
            if mask != peer.mask:
                if peer.output:
                    peer.active_s = self._now_s  # from here on it must read
                peer.port.watch(peer, mask)
        if self._deferred:  # now that the answers are on their way
            end_s = self.clock() + _DEFERRED_S
            for _ in range(len(self._deferred)):  # what they defer is for the next round
                self._deferred.popleft()()
                if self.clock() > end_s:
                    break

    def _tick(self, now_s: float) -> None:
        self.calls.tick(now_s)
        for port in self._ports:
            port.tick(now_s)
        for each in self._router.served:
            each.entry.tick(now_s)
        if now_s >= self._next_sweep_s:
            self._next_sweep_s = now_s + _SWEEP_S
            for port in self._ports:
                sweep(port, now_s)
            self._router.prune()
        if self._drain is not None:
            self._drain.cut_off_who_takes_nothing(self._ports, now_s)
            if not self._is_pending():
                self.drained.set()
        is_hurried = self._drain is not None or self._router.is_busy
        is_hurried |= self.calls.is_due(now_s + _SWEEP_S)
        self._next_tick_s = now_s + (_TICK_S if is_hurried else _SWEEP_S)

    def drain(self, refusal: ServingError) -> None:
        """Refuse new calls; `drained` is set once those that were accepted are answered."""
        self.post(partial(self._begin_drain, refusal))

    def _begin_drain(self, refusal: ServingError) -> None:
        self.phase = max(self.phase, LoopPhase.DRAINING)
        self._drain, self._next_tick_s = Drain(refusal, self.clock()), 0.0
        for port in self._ports:
            self._drain.begin(port)

    def _is_pending(self) -> bool:
        is_pending = (port.is_pending(peer) for port in self._ports for peer in port)
        return self._router.is_busy or any(is_pending)

    def stop(self) -> None:
        """Close the ports and every connection; `drain` first to lose nothing."""
        self.post(self._begin_closing)
        self._thread.join()
        self._close()  # not before: `post` may be about to wake it

    def _begin_closing(self) -> None:
        self.phase = LoopPhase.CLOSING
        self._closing_since_s, self._next_tick_s = self.clock(), 0.0
        for port in self._ports:
            port.close()

    def _have_left(self) -> bool:
        """Return whether the peers that had something to wait for have left, or had a second."""
        if self.phase < LoopPhase.CLOSING:
            return False
        if self.clock() >= self._closing_since_s + _CLOSING_S:
            return True
        begun_s = math.inf if self._drain is None else self._drain.begun_s
        peers = (peer for port in self._ports for peer in port)
        return not any(peer.active_s >= begun_s - _CLOSING_S for peer in peers)

    def _close(self) -> None:
        self.phase = LoopPhase.CLOSED
        for each in (self.selector, self._waker, self._woken):
            each.close()
