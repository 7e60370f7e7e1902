"""One thread: read all that is ready, make one batch of it, run it, answer all, write.

The next batch gathers in the kernel while this one runs, so batches grow with the load, and a lone
caller is answered by the thread that read its call.
"""

import logging
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from functools import partial

from serving.batching.batcher import Batcher
from serving.errors import DigitsError
from serving.http2.frames import Http2Error
from serving.http2.server import NotHttp2
from serving.system.host import Host
from serving.transports.h2.calls import Calls
from serving.transports.h2.connection import MAX_BYTE_S, Connection
from serving.transports.h2.connections import Connections
from serving.transports.h2.heads import Head
from serving.transports.h2.limits import Limits

_log = logging.getLogger(__name__)

_POLL_S = 60e-6
"""How long the loop polls, once it has written, before it sleeps: a core takes tens of microseconds
to wake up, and a lone caller's next call comes within that time."""
_TICK_S = 0.01
"""How often the loop looks for deadlines that have passed, while one is near."""
_SWEEP_S = 1.0
"""How often it looks for connections that are idle, stuck or old."""
_ROUND_S = _RUNS_S = 0.01
"""How long a round reads at most, and then runs batches: under overload either alone would take all
its time."""
_TELLING_BYTES = 1024
"""Shorter reads do not say what a peer's bytes take: any read takes some microseconds."""
_MAX_READ_S = 2e-4
"""What a turn may take whatever its length. One that takes more, and more than even the tiniest
frames would, was interrupted; charged in full, it would have its peer wait as long for each other
busy one."""
_READ = selectors.EVENT_READ


class Loop:
    """Serves the connections of one listening socket."""

    def __init__(
        self,
        listener: socket.socket,
        limits: Limits,
        *,
        poll: bool,
        host: Host,
    ) -> None:
        """Prepare; `connect` and `start` begin.

        Args:
            listener: listens already, and does not block.
            limits: what peers may use.
            poll: whether the loop may poll for a moment before it sleeps.
            host: what it takes from its machine.
        """
        self._listener = listener
        self._poll_s = _POLL_S if poll else 0.0
        self.clock = host.clock
        """Monotonic, in seconds."""
        self.selector = host.selector()
        """Watches the listener and the connections, whose data they are."""
        self._buffer = memoryview(bytearray(limits.read_bytes))
        self._touched: list[Connection] = []
        self._due: deque[Batcher] = deque()
        """Models whose calls wait, the next one's turn first."""
        self._deferred: list[Callable[[], None]] = []
        self._posted: deque[Callable[[], None]] = deque()
        self._waker, self._woken = host.socketpair()
        self._is_awake = True
        """Whether `post` need not wake the thread."""
        self._now_s = self.clock()
        """When the last round began."""
        self._poll_until_s = 0.0
        self._is_draining = self._is_stopped = False
        self._is_overrun = False
        """Whether the last round did not read all that was ready."""
        self._clock_s = self._accept_tag_s = 0.0
        """The clock of turns: where not all connections can be read in a round, the least tags
        are first (start-time fair queueing)."""
        self._next_tick_s = 0.0
        self._next_sweep_s = 0.0
        self.drained = threading.Event()
        """Set once a drain has answered all that was accepted."""
        self._thread = threading.Thread(target=self._run, name="h2", daemon=True)

    def attach(self, connections: Connections, calls: Calls) -> None:
        """Set the parts that refer to `selector`, `touch` and `post`."""
        self._connections, self._calls = connections, calls
        calls.context.router.attach(self)
        connections.listen()
        self.selector.register(self._woken, _READ, self._woken)

    def start(self) -> None:
        """Begin to serve, on a thread of its own."""
        self._thread.start()

    @property
    def num_calls(self) -> int:
        """Calls in progress; from any thread, so not exact while they change."""
        return sum(len(connection.streams) for connection in self._connections)

    def touch(self, connection: Connection) -> None:
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
        self._calls.forget_layouts()

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
        elif (
            self._calls.context.stalled or self._calls.has_new_timers
        ):  # since the last tick, perhaps
            self._next_tick_s = min(self._next_tick_s, now_s + _TICK_S)

    def _timeout_s(self) -> float:
        """Return how long the loop may sleep; from then on `post` wakes it."""
        if self._due:
            timeout_s = min(b.delay_s(self._now_s) if b.max_delay_s else 0.0 for b in self._due)
        elif self._touched or self._now_s < self._poll_until_s:  # a tick touches, too
            return 0.0
        else:
            timeout_s = max(0.0, self._next_tick_s - self._now_s)
        # First the flag, then the look: a post in between wakes the loop or is seen here.
        self._is_awake = not timeout_s
        return 0.0 if self._posted else timeout_s

    def _read(self, ready: list[tuple[selectors.SelectorKey, int]], now_s: float) -> None:
        """Read the connections that are ready, for some 10 ms in all.

        Where that was not enough for all, those who have taken the least time go first.
        """
        if self._calls.need_tokens or self._calls.is_stale:
            self._calls.check(self._connections)
        if self._is_overrun:
            ready.sort(key=self._tag_s)
        begin_s = now_s
        for key, mask in ready:
            connection = key.data
            if connection is self._woken:
                self._woken.recv(64)
                continue
            if connection is self._listener:
                self._connections.accept(now_s, self._clock_s)
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
            if begin_s - now_s > _ROUND_S:
                break
        self._is_overrun = begin_s - now_s > _ROUND_S

    def _tag_s(self, ready: tuple[selectors.SelectorKey, int]) -> float:
        """Return when a turn is due."""
        data = ready[0].data
        if isinstance(data, Connection):
            return data.tag_s
        return self._accept_tag_s if data is self._listener else 0.0

    def _run_waiting(self, now_s: float) -> None:
        """Run what waits, a batch of each model in turn, for some 10 ms in all.

        Where a round did not read all, one batch must do: else what callers send would wait unread
        for longer than they wait for answers.
        """
        due, num_waiting = self._due, 0
        end_s = now_s if self._is_overrun else now_s + _RUNS_S
        while len(due) > num_waiting:
            batcher = due.popleft()
            if batcher.max_delay_s and batcher.delay_s(now_s):
                due.append(batcher)
                num_waiting += 1
                continue
            batcher.turn(now_s)
            if not due:
                return
            now_s = self.clock()
            if now_s >= end_s:
                return
            self._flush()

    def _serve(self, connection: Connection, mask: int, now_s: float) -> int:
        """Read what a connection has sent, and its calls; return the number of bytes."""
        num_bytes = 0
        try:
            if mask & _READ:
                data = connection.read(self._buffer)
                if data is None:
                    self._connections.drop(connection)
                    return 0
                connection.active_s = now_s
                num_bytes = len(data)
                if data:
                    self._calls.receive(connection, data, now_s)
            # If it is writable, the flush sends the rest. `touch`, without the call.
            if not connection.touched:
                connection.touched = True
                self._touched.append(connection)
        except NotHttp2:
            connection.refuse_protocol()
            self._connections.say_goodbye(connection)
        except (Http2Error, OSError):
            self._connections.say_goodbye(connection)
        except Exception:  # a flaw of ours: it ends this connection, and never the loop
            _log.exception("a connection failed")
            self._connections.drop(connection)
        return num_bytes

    def _flush(self) -> None:
        touched, self._touched = self._touched, []
        for connection in touched:
            connection.touched = False
            if not connection.is_open:
                continue
            if not connection.flush():
                self._connections.drop(connection)
            elif connection.is_writing != bool(connection.output):
                connection.is_writing = bool(connection.output)
                self._connections.watch(connection)
        if self._deferred:  # now that the answers are on their way
            deferred, self._deferred = self._deferred, []
            for task in deferred:
                task()

    # Time

    def _tick(self, now_s: float) -> None:
        self._calls.tick(now_s)
        if now_s >= self._next_sweep_s:
            self._next_sweep_s = now_s + _SWEEP_S
            self._connections.sweep(now_s)
            self._calls.context.router.prune()
        if self._is_draining and not self._is_pending():
            self.drained.set()
        is_hurried = self._is_draining or self._calls.is_due(now_s + _SWEEP_S)
        self._next_tick_s = now_s + (_TICK_S if is_hurried else _SWEEP_S)

    # The end

    def drain(self, refusal: DigitsError) -> None:
        """Refuse new calls; `drained` is set once those that were accepted are answered."""
        self.post(partial(self._begin_drain, refusal))

    def _begin_drain(self, refusal: DigitsError) -> None:
        self._is_draining = True
        self._next_tick_s = 0.0
        for connection in self._connections:
            connection.http2.announce_end()
            self.touch(connection)
        self._calls.drain(refusal, self._connections)

    def _is_pending(self) -> bool:
        return self._calls.context.router.is_busy or any(
            connection.output
            or connection.http2.num_unsent()
            or any(
                isinstance(state.call, Head) or state.call.is_pending
                for state in connection.streams.values()
                if state.call is not None
            )
            for connection in self._connections
        )

    def stop(self) -> None:
        """Close the port and every connection; `drain` first to lose nothing."""
        self.post(self._stop)
        self._thread.join()
        self._waker.close()  # not before: `post` may be about to use it
        self._woken.close()

    def _stop(self) -> None:
        self._is_stopped = True

    def _close(self) -> None:
        self._connections.close()
        self.selector.close()
