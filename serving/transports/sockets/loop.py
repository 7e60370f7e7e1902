"""One thread: read all that is ready, make one batch of it, run it, answer all, write.

The next batch gathers in the kernel while this one runs, so batches grow with the load, and a lone
caller is answered by the thread that read its call.
"""

import logging
import selectors
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from serving.batching.batcher import Batcher
from serving.errors import DigitsError
from serving.http2.frames import Http2Error
from serving.router import Router
from serving.system.host import Host
from serving.transports.sockets.connections import Calls, Connections
from serving.transports.sockets.peer import MAX_BYTE_S, Peer

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
_DEFERRED_S = 2e-3
"""How long a round does what was deferred, such as requests that HTTP callers have sent ahead."""
_TELLING_BYTES = 1024
"""Shorter reads do not say what a peer's bytes take: any read takes some microseconds."""
_MAX_READ_S = 2e-4
"""What a turn may take whatever its length. One that takes more, and more than even the tiniest
frames would, was interrupted; charged in full, it would have its peer wait as long for each other
busy one."""
_READ_BYTES = 512 << 10
"""Bytes read of one connection before the others' turn, some 600 one-image calls."""
_READ = selectors.EVENT_READ


class Loop:
    """Serves the connections of some listening sockets."""

    def __init__(self, router: Router, *, poll: bool, host: Host, name: str = "h2") -> None:
        """Prepare; `start` begins.

        Args:
            router: the models; those that no other thread owns belong to this one.
            poll: whether the loop may poll for a moment before it sleeps.
            host: what it takes from its machine.
            name: its thread's.
        """
        self._router = router
        self._poll_s = _POLL_S if poll else 0.0
        self._round_s = min(_ROUND_S, router.batching.slo_s / 4)
        self.clock = host.clock
        """Monotonic, in seconds."""
        self.selector = host.selector()
        """Watches the listeners and the connections, whose data they are."""
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self._homes: tuple[Connections, ...] = ()
        self._calls: tuple[Calls, ...] = ()
        self._touched: list[Peer] = []
        self._due: deque[Batcher] = deque()
        """Models whose calls wait, the next one's turn first."""
        self._deferred: deque[Callable[[], None]] = deque()
        self._posted: deque[Callable[[], None]] = deque()
        self._waker, self._woken = host.socketpair()
        self._is_awake = True
        """Whether `post` need not wake the thread."""
        self._now_s = self.clock()
        """When the last round began."""
        self._poll_until_s = 0.0
        self._is_stopped = self._is_hurried = False
        self._refusal: DigitsError | None = None
        """Why new calls are refused, once it drains."""
        self._is_overrun = False
        """Whether the last round did not read all that was ready."""
        self._clock_s = self._accept_tag_s = 0.0
        """The clock of turns: where not all connections can be read in a round, the least tags
        are first (start-time fair queueing)."""
        self._next_tick_s = 0.0
        self._next_sweep_s = 0.0
        self.drained = threading.Event()
        """Set once a drain has answered all that was accepted."""
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.selector.register(self._woken, _READ, self._woken)
        if router.owner is None:
            router.attach(self)

    def add(self, connections: Connections) -> None:
        """Serve a listening socket, too; on the loop's thread, or before it starts."""
        self._homes += (connections,)
        self._calls += (connections.calls,)
        connections.listen()
        if self._refusal is not None:
            connections.calls.drain(self._refusal, connections)

    def start(self) -> None:
        """Begin to serve, on a thread of its own."""
        self._thread.start()

    @property
    def num_calls(self) -> int:
        """Calls in progress; from any thread, so not exact while they change."""
        return sum(len(connection.streams) for home in self._homes for connection in home)

    def touch(self, connection: Peer) -> None:
        """Have a connection flushed at the end of the round."""
        if not connection.touched:
            connection.touched = True
            self._touched.append(connection)

    def post(self, task: Callable[[], None]) -> None:
        """Run a function on the loop's thread, from any thread."""
        self._posted.append(task)
        if not self._is_awake:
            self._is_awake = True
            self._waker.send(b"\0")

    def schedule(self, batcher: Batcher) -> None:
        """See `Owner`."""
        self._due.append(batcher)

    def defer(self, task: Callable[[], None]) -> None:
        """See `Owner`."""
        self._deferred.append(task)

    def forget_layouts(self) -> None:
        """See `Owner`."""
        for calls in self._calls:
            calls.forget_layouts()

    def hurry(self) -> None:
        """Have what is due be done from 10 ms on: it became due after the last look."""
        self._is_hurried = True

    def _run(self) -> None:
        while not self._is_stopped:
            try:
                self.turn()
            except Exception:  # a flaw of ours: it ends this round, and never the loop
                _log.exception("a round failed")
        self._close()

    def turn(self) -> None:
        """Read the connections that are ready, run the queue, write."""
        ready = self.selector.select(self._timeout_s())
        self._is_awake = True
        while self._posted:  # first: what a drain refuses may be about to be read
            self._posted.popleft()()
        self._now_s = now_s = self.clock()
        if ready:
            self._read(ready, now_s)
        if self._due:
            self._run_waiting(now_s)
        if self._touched or self._deferred:
            self._flush()
            self._poll_until_s = self.clock() + self._poll_s
        if now_s >= self._next_tick_s:
            self._tick(now_s)
        elif self._is_hurried:
            self._next_tick_s = min(self._next_tick_s, now_s + _TICK_S)

    def _timeout_s(self) -> float:
        """Return how long the loop may sleep; from then on `post` wakes it."""
        if self._touched or self._deferred:  # by a tick, or because others had their turn
            return 0.0
        timeout_s = max(0.0, self._next_tick_s - self._now_s)
        if self._due:
            delays_s = (b.delay_s(self._now_s) if b.max_delay_s else 0.0 for b in self._due)
            timeout_s = min(timeout_s, *delays_s)
        elif self._now_s < self._poll_until_s:
            return 0.0
        # First the flag, then the look: a post in between wakes the loop or is seen here.
        self._is_awake = not timeout_s
        return 0.0 if self._posted else timeout_s

    def _read(self, ready: list[tuple[selectors.SelectorKey, int]], now_s: float) -> None:
        """Read the connections that are ready, for some 10 ms in all.

        Where that was not enough for all, those who have taken the least time go first.
        """
        for home in self._homes:
            if home.calls.need_tokens or home.calls.is_stale:
                home.calls.check(home)
        if self._is_overrun:
            ready.sort(key=self._tag_s)
        begin_s = now_s
        for key, mask in ready:
            connection = key.data
            if connection is self._woken:
                self._woken.recv(64)
                continue
            if connection.__class__ is Connections:
                connection.accept(now_s, self._clock_s)
                end_s = self.clock()
                self._accept_tag_s = self._clock_s + end_s - begin_s
            elif not connection.is_open:  # closed in this round, for a new one
                continue
            else:
                num_bytes = self._serve(connection, mask, now_s)
                end_s = self.clock()
                turn_s = min(end_s - begin_s, _MAX_READ_S + num_bytes * MAX_BYTE_S)
                if num_bytes >= _TELLING_BYTES:
                    connection.byte_s += (turn_s / num_bytes - connection.byte_s) / 4
                self._clock_s = max(self._clock_s, connection.tag_s)
                connection.tag_s = self._clock_s + turn_s
            begin_s = end_s
            if begin_s - now_s > self._round_s:
                break
        self._is_overrun = begin_s - now_s > self._round_s

    def _tag_s(self, ready: tuple[selectors.SelectorKey, int]) -> float:
        """Return when a turn is due."""
        data = ready[0].data
        if isinstance(data, Peer):
            return data.tag_s
        return self._accept_tag_s if isinstance(data, Connections) else 0.0

    def _run_waiting(self, now_s: float) -> None:
        """Run what waits, a batch of each model in turn, for some 10 ms in all.

        Where a round did not read all, one batch must do: else what callers send would wait unread
        for longer than they wait for answers.
        """
        due, num_waiting = self._due, 0
        end_s = now_s if self._is_overrun else now_s + self._round_s
        while len(due) > num_waiting:
            batcher = due.popleft()
            if batcher.max_delay_s and batcher.delay_s(now_s):
                due.append(batcher)
                num_waiting += 1
                continue
            if batcher.turn(now_s):  # their deadlines may come meanwhile
                self._is_hurried = True
            if not due:
                return
            now_s = self.clock()
            if now_s >= end_s:
                return
            self._flush()

    def _serve(self, connection: Peer, mask: int, now_s: float) -> int:
        """Read what a connection has sent, and its calls; return the number of bytes."""
        num_bytes, home = 0, connection.home
        try:
            if mask & _READ:
                data = connection.read(self._buffer)
                if data is None:
                    home.abort(connection)
                    return 0
                num_bytes = len(data)
                if data:
                    home.calls.receive(connection, data, now_s)
            # If it is writable, the flush sends the rest. `touch`, without the call.
            if not connection.touched:
                connection.touched = True
                self._touched.append(connection)
        except (Http2Error, OSError):
            home.close_gracefully(connection)
        except Exception:  # a flaw of ours: it ends this connection, and never the loop
            _log.exception("a connection failed")
            home.abort(connection)
        return num_bytes

    def _flush(self) -> None:
        touched, self._touched = self._touched, []
        for connection in touched:
            connection.touched = False
            if not connection.is_open:
                continue
            if not connection.flush():
                connection.home.abort(connection)
            elif connection.is_writing != bool(connection.output):
                connection.is_writing = bool(connection.output)
                connection.active_s = self._now_s  # from here on its peer has to read
                connection.home.watch(connection)
        if self._deferred:  # now that the answers are on their way
            end_s = self.clock() + _DEFERRED_S
            while self._deferred:
                self._deferred.popleft()()
                if self.clock() > end_s:
                    break

    # Time

    def _tick(self, now_s: float) -> None:
        self._is_hurried = False
        for calls in self._calls:
            calls.tick(now_s)
        owned = self._router.batchers if self._router.owner is self else ()
        for batcher in owned:
            batcher.tick(now_s)
        if now_s >= self._next_sweep_s:
            self._next_sweep_s = now_s + _SWEEP_S
            for home in self._homes:
                home.sweep(now_s)
            if owned:
                self._router.prune()
        if self._refusal is not None and not self._is_pending():
            self.drained.set()
        is_hurried = (
            self._refusal is not None
            or any(calls.is_due(now_s + _SWEEP_S) for calls in self._calls)
            or any(batcher.num_waiting for batcher in owned)
        )
        self._next_tick_s = now_s + (_TICK_S if is_hurried else _SWEEP_S)

    # The end

    def drain(self, refusal: DigitsError) -> None:
        """Refuse new calls; `drained` is set once those that were accepted are answered."""
        self.post(partial(self._begin_drain, refusal))

    def _begin_drain(self, refusal: DigitsError) -> None:
        self._refusal = refusal
        self._next_tick_s = 0.0
        for home in self._homes:
            for connection in home:
                connection.announce_end()
                self.touch(connection)
            home.calls.drain(refusal, home)

    def _is_pending(self) -> bool:
        is_ours = self._router.owner is self and self._router.is_busy
        return is_ours or any(connection.is_pending for home in self._homes for connection in home)

    def stop(self) -> None:
        """Close the port and every connection; `drain` first to lose nothing."""
        self.post(self._stop)
        self._thread.join()
        self._waker.close()  # not before: `post` may be about to use it
        self._woken.close()

    def _stop(self) -> None:
        self._is_stopped = True

    def _close(self) -> None:
        for home in self._homes:
            home.close()
        self.selector.close()
