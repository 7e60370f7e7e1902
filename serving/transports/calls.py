"""Calls in progress: coroutines of the loop, and what those of a loop share: deadlines, bytes."""

import heapq
import itertools
import math
import types
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from serving.batching.run import Group, Ran, ResponseEncoder
from serving.errors import Overloaded, ServingError
from serving.telemetry.metrics import NO_MODEL
from serving.transports import unpacking
from serving.transports.byte_budget import Budget
from serving.transports.peer import Peer
from serving.transports.pools import FewThreads, Pool

if TYPE_CHECKING:
    from serving.telemetry.access_log import LoggedCall

SMALL_BYTES = 4096
"""The most that the loop itself decodes or writes: some 100 µs."""
_RESUME_S = 0.002
"""How long a tick resumes calls that wait for room."""
_MIN_DEADLINES = 1000
"""Deadlines of calls that are over are kept up to this number, and then removed together."""
Result = TypeVar("Result")


END = object()
"""What a call that is answered in parts gets behind the last one."""


@types.coroutine
def paused(begin: Callable[[], object]) -> Generator[Callable[[], object], Any, Any]:
    """Wait for the outcome of the work that `begin`, called during the pause, begins."""
    return (yield begin)


class LoopCall:
    """A call in progress, on any protocol; used by the loop's thread only.

    Its method or handler is a coroutine, which waits for one thing at a time. Each protocol has a
    subclass, which knows how calls end.
    """

    __slots__ = (
        "_resume", "_steps", "_work", "deadline_s", "is_over", "is_running", "logged", "model",
        "peer", "port", "stream",
    )  # fmt: skip

    def __init__(self, port: Any, peer: Peer, stream: Any, deadline_s: float) -> None:
        """Prepare; `start` begins.

        Args:
            port: the `Port` whose call it is.
            peer: its caller.
            stream: its name among those of the caller.
            deadline_s: in monotonic seconds.
        """
        self.port = port
        self.peer = peer
        self.stream = stream
        self.deadline_s = deadline_s
        self.is_over = False
        self.is_running = False
        """Whether it has come whole and waits for a run or a thread."""
        self.model = NO_MODEL
        """The version that it is for, as far as it is known."""
        self.logged: LoggedCall | None = None
        self._steps: Coroutine[Callable[[], object], Any, Any] | None = None
        self._work: Future[Any] | None = None
        self._resume: Callable[[], None] | None = None
        """Has the next part of the answer made."""

    def start(self, steps: Coroutine[Callable[[], object], Any, Any]) -> None:
        """Begin to answer."""
        self._steps = steps
        self._step(steps.send, None)

    # For methods and handlers

    async def run(self, rows: Any, encoder: ResponseEncoder, deadline_s: float = math.inf) -> Any:
        """Have rows run, and return the response.

        Args:
            rows: bytes, or an array for each input.
            encoder: makes the response.
            deadline_s: in monotonic seconds, if it comes before the call's.

        Raises:
            ServingError: there is no room, it was too late, or it failed.
        """
        return await paused(partial(submit, self._group(rows, encoder, deadline_s)))

    async def run_in_parts(
        self, rows: Any, encoder: ResponseEncoder, deadline_s: float = math.inf
    ) -> AsyncGenerator[Any, None]:
        """Have rows run, and yield the parts of the answer: the next is made once one is taken.

        Of a model that does not answer in parts there is one; see `run`.
        """
        response = await paused(partial(submit, self._group(rows, encoder, deadline_s)))
        while response is not END:
            yield response
            if self._resume is None:
                return
            response = await paused(self._take_resume())

    def _group(self, rows: Any, encoder: ResponseEncoder, deadline_s: float) -> Group:
        now_s = self.port.clock()
        own_s = math.inf if encoder.timeout_s is None else encoder.timeout_s
        deadline_s = min(self.deadline_s, deadline_s, now_s + own_s)
        self.is_running, self.model = True, encoder.target.label
        return Group(self.peer, [self.stream], [rows], encoder, self, now_s, deadline_s)

    def _take_resume(self) -> Callable[[], None]:
        resume, self._resume = self._resume, None
        assert resume is not None
        return resume

    async def work(
        self,
        function: Callable[..., Result],
        *args: Any,
        size: int | None = None,
        few_bytes: int = SMALL_BYTES,
        pool: Pool | None = None,
    ) -> Result:
        """Call a function where it may take long.

        Args:
            function: of a module, unless `pool` is one of threads.
            args: its arguments.
            size: bytes that it reads or writes; here and now if they are few.
            few_bytes: how many these may be.
            pool: where, if not in the port's.

        Raises:
            ServingError: see the function.
        """
        if size is not None and size <= few_bytes:
            return function(*args)

        def begin() -> None:
            owner = self.peer.address or "unix"
            self._work = (pool or self.port.pool).submit(owner, function, *args)
            post = self.port.post
            self._work.add_done_callback(lambda future: post(partial(self._end_work, future)))

        was_running, self.is_running = self.is_running, True
        try:
            result: Result = await paused(begin)
        finally:
            self.is_running = was_running  # of a stream, more may come
        return result

    async def unpacked(self, packed: bytes, limit: int) -> bytes:
        """Unpack a request that was compressed, once there is room for its bytes.

        Args:
            packed: all of its bytes.
            limit: the most bytes that it may have.

        Raises:
            TooLarge: it has more.
            InvalidRequest: it is malformed.
        """
        num_bytes, calls = unpacking.num_bytes_in(packed, limit), self.port.calls
        self.keep(len(packed))
        while not calls.budget.has_room(self, num_bytes):
            await paused(self.wait_for_room)
        self.keep(num_bytes)
        return await self.work(
            unpacking.unpack,
            packed,
            num_bytes,
            size=max(len(packed), num_bytes),
            few_bytes=unpacking.FEW_BYTES,
            pool=calls.unpacker(self.port),
        )

    def keep(self, num_bytes: int) -> None:
        """Count the bytes of a request that has come, until it is answered."""
        self.port.calls.budget.hold(self, num_bytes)

    def wait_for_room(self) -> None:
        """Be resumed once there may be room."""
        self.port.calls.stall(self)

    async def others(self) -> None:
        """Let other calls have their turn."""
        steps = self._steps
        assert steps is not None

        def go_on() -> None:
            if self._steps is steps:
                self._step(steps.send, None)

        await paused(partial(self.port.defer, go_on))

    def _end_work(self, future: "Future[Any]") -> None:
        if self._steps is None or future is not self._work:
            return
        error = CancelledError() if future.cancelled() else future.exception()
        if error is None:
            self._step(self._steps.send, future.result())
            return
        self._step(self._steps.throw, error)
        error.__traceback__ = None  # a circle through the future, which would keep the request

    # Outcomes

    def answer(self, group: Group, responses: Sequence[Any], run: Ran) -> None:
        if responses and self._steps is not None:
            self.model = run[2], run[3]
            if self.logged is not None:
                self.logged.run = run
            response = END if group.encoder.in_parts else responses[0]
            self._step(self._steps.send, response)

    def take_part(self, group: Group, response: Any, resume: Callable[[], None]) -> None:
        if self._steps is not None:
            self._resume = resume
            self._step(self._steps.send, response)

    def fail(self, group: Group, error: ServingError) -> None:
        if self._steps is not None:
            self._step(self._steps.throw, error)

    def _step(self, resume: Callable[[Any], Callable[[], object]], outcome: Any) -> None:
        """Go on with an outcome, up to the next thing to wait for."""
        steps = self._steps
        assert steps is not None
        try:
            begin = resume(outcome)
            if not self.is_over:
                begin()
                return
            steps.close()  # it was ended by its own step
        except StopIteration as end:
            self._steps = None
            if not self.is_over:
                self._returned(end.value)
        except Exception as err:
            self._steps = None
            self.model = getattr(err, "model", None) or self.model
            steps.close()  # it has ended, unless the error is that of `begin`
            if not self.is_over:
                self._raised(err)

    def close(self) -> None:
        """Give the rest up; the call is over."""
        self.is_over = True
        self.port.calls.budget.hold(self, 0)
        self.port.calls.stalled.pop(self, None)
        steps, self._steps = self._steps, None
        if steps is not None and not steps.cr_running:  # type: ignore[attr-defined]
            steps.close()
        if self._resume is not None:  # nobody waits: it ends
            self.port.post(self._take_resume())
        work, self._work = self._work, None  # a circle, which would keep the request
        if work is not None:
            work.cancel()

    def end_log(self, status: str, http_status: int | None = None) -> str:
        """Write the access line and the span of a call that is over.

        Args:
            status: the name of gRPC's code.
            http_status: of a call over HTTP.

        Returns:
            The id that its answer has; empty if calls are not logged.
        """
        logged, self.logged = self.logged, None
        if logged is None:
            return ""
        self.port.log.end(logged, status, http_status)
        return logged.ids["request_id"]

    # The protocol's part

    def _returned(self, outcome: Any) -> None:
        """Answer with the outcome of the coroutine."""
        raise NotImplementedError

    def _raised(self, error: Exception) -> None:
        """Answer with the error of the coroutine."""
        raise NotImplementedError

    def resume(self) -> None:
        """Go on, now that there may be room, or answers were read."""
        raise NotImplementedError

    def resume_reading(self) -> None:
        """Let more of the request come: there is room for it now."""
        raise NotImplementedError

    def expire(self) -> None:
        """End a call whose deadline has passed."""
        raise NotImplementedError

    def refuse_bytes(self) -> None:
        """End a call for whose bytes there is no room."""
        raise NotImplementedError


def submit(group: Group) -> None:
    """Have the rows of a call run; its sink gets the outcome."""
    if not group.encoder.target.submit(group):
        group.sink.fail(group, Overloaded())


class LoopCalls:
    """What the calls of a loop share: a heap of deadlines, a budget of bytes, those that wait."""

    def __init__(self, clock: Callable[[], float], hurry: Callable[[], None]) -> None:
        """Start with none; `hurry` has `tick` called soon."""
        self._clock = clock
        self.hurry = hurry
        self.stalled: dict[LoopCall, None] = {}
        """Calls that wait for room in a queue, the longest waiting first."""
        self.budget = Budget(clock, hurry)
        """The bytes of requests that have not come whole, or are not read yet."""
        self._unpacker: FewThreads | None = None
        self._deadlines: list[tuple[float, int, LoopCall]] = []
        self._numbers = itertools.count()
        self._max_deadlines = _MIN_DEADLINES

    def unpacker(self, port: Any) -> "FewThreads":
        """Return the thread on which large requests are unpacked: one, so that they take turns."""
        if self._unpacker is None:
            self._unpacker = FewThreads(port.host, port.post, 1)
        return self._unpacker

    def end_at_deadline(self, call: LoopCall) -> None:
        """Have a call ended at its deadline, if it has not ended before."""
        if call.deadline_s == math.inf:
            return
        heapq.heappush(self._deadlines, (call.deadline_s, next(self._numbers), call))
        self.hurry()
        if len(self._deadlines) > self._max_deadlines:  # most are of calls that have ended
            self._deadlines = [each for each in self._deadlines if not each[2].is_over]
            heapq.heapify(self._deadlines)
            self._max_deadlines = _MIN_DEADLINES + 2 * len(self._deadlines)

    def stall(self, call: LoopCall) -> None:
        """Have a call resumed once there may be room in its queue."""
        self.stalled[call] = None
        self.hurry()

    def is_due(self, now_s: float) -> bool:
        """Return whether `tick` has something to do by then, or may have at any time."""
        if self.stalled or self.budget.is_contended:
            return True
        return bool(self._deadlines and self._deadlines[0][0] <= now_s)

    def tick(self, now_s: float) -> None:
        """End the calls whose deadline has passed; resume those that waited for room."""
        while self._deadlines and self._deadlines[0][0] <= now_s:
            call = heapq.heappop(self._deadlines)[2]
            if not call.is_over:
                call.expire()
        self.budget.tick(now_s)
        end_s = self._clock() + _RESUME_S
        for _ in range(len(self.stalled)):
            if not self.stalled:
                break
            call = next(iter(self.stalled))
            del self.stalled[call]
            call.resume()
            if self._clock() > end_s:
                break
