"""Calls in progress on an event loop: to the batcher, and their outcomes back to the loop."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, NoReturn, Self

import grpc

from serving.batching.batcher import Batcher
from serving.batching.request import Answer, Outcome, Request
from serving.errors import DigitsError, Unavailable
from serving.protocols.method import ImagesUnary
from serving.protocols.plan import Plan
from serving.protocols.status import STATUS, Status, error_of
from serving.telemetry.metrics import Metrics

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Awaitable[Any]]

_QUIET_PASSES = 6
"""Passes of the loop without a new call after which it is quiet: a call takes a few passes to
arrive. With 4, 6 and 10: runs of 13, 21 and 22 images, 7,010, 7,370 and 7,340 calls/s (h2load, 8 x
8, one core)."""
_LONGEST_WAIT_S = 0.01
"""A runner is woken after this time even if calls arrive without a pause."""


async def abort(context: Context, status: Status) -> NoReturn:
    """End a call with a status that is not OK."""
    trailers = (*(context.trailing_metadata() or ()), *status.metadata)
    await context.abort(status.code, status.text, trailers)


class Calls:
    """Submits to a batcher from one event loop.

    grpc.aio hands over calls one at a time. A runner that is woken for the first would compete with
    the loop for the GIL and run batches of one, so the loop takes in all arrived calls before it
    wakes one. Outcomes come from the runners' threads and are posted to the loop together, with one
    wake-up for all that are ready: waking a loop costs more than delivering an outcome.
    """

    def __init__(self, batcher: Batcher, metrics: Metrics) -> None:
        """Bind to the running event loop."""
        self._batcher = batcher
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._outcomes: deque[tuple[AsyncCall, Outcome]] = deque()
        self._is_woken = False
        self._num_arrivals = self._num_passes = 0
        self._first_arrival_s = 0.0
        self._is_released: asyncio.Event | None = None
        self.num_begun = self.num_active = 0

    def guarded(self, handler: Handler, method: str = "other") -> Handler:
        """Wrap a handler: count its calls, and turn what it raises into a status.

        The caller gets the texts of our own errors; any other exception is logged here and becomes
        INTERNAL without its text.

        Args:
            handler: a coroutine of (request, context).
            method: the name to count its calls under.
        """

        async def guarded_handler(request: Any, context: Context) -> Any:
            self.num_begun += 1
            self.num_active += 1
            error: DigitsError | None = None
            status = "OK"
            try:
                return await handler(request, context)
            except asyncio.CancelledError:  # the caller left, or the server stops
                # If it escaped, a caller that is still there would get no status (grpc #29248).
                error, status = Unavailable("the call was cut off"), "CANCELLED"
            except Exception as err:
                error = error_of(err)
                status = STATUS[type(error)].name
            finally:
                self.num_active -= 1
                self._metrics.count(method, status)
            if isinstance(error, Unavailable) and self._is_released is not None:
                with suppress(asyncio.CancelledError):
                    await self._is_released.wait()
            return await abort(context, Status.of(error))

        return guarded_handler

    def hold_refused(self) -> None:
        """Hold calls that are refused as Unavailable until `release`.

        Otherwise callers that retry at once would leave no moment without new calls, and calls that
        are pending in gRPC's core at a stop are answered CANCELLED (grpc #41785).
        """
        self._is_released = asyncio.Event()

    def release(self) -> None:
        """Send the held calls their status."""
        if self._is_released is not None:
            self._is_released.set()

    def unary(self, method: ImagesUnary) -> Handler:
        """Make the guarded handler of a method of images: decode, queue, wait, encode."""

        async def handler(request: bytes, context: Context) -> bytes:
            received_s = time.monotonic()
            try:
                call = AsyncCall(*method.read(request), Caller.of(context))
                self.submit(call)
                await self.settled(call)
                return call.response()
            except DigitsError as err:
                method.note_failure(err, time.monotonic() - received_s)
                raise

        return self.guarded(handler, method.name)

    def submit(self, call: "AsyncCall") -> None:
        """Queue a call; raises what `Batcher.put` raises."""
        self._batcher.put(call.request, partial(self.post, call))
        self._num_arrivals += 1
        if self._num_arrivals == 1:
            self._first_arrival_s = self._loop.time()
            self._loop.call_soon(self._wake_when_quiet, 0)

    def _wake_when_quiet(self, num_seen: int) -> None:
        self._num_passes = 0 if self._num_arrivals > num_seen else self._num_passes + 1
        if (
            self._num_passes < _QUIET_PASSES
            and self._batcher.num_waiting < self._batcher.max_batch_size
            and self._loop.time() - self._first_arrival_s < _LONGEST_WAIT_S
        ):
            self._loop.call_soon(self._wake_when_quiet, self._num_arrivals)
            return
        self._num_arrivals = 0
        self._batcher.wake()

    async def settled(self, call: "AsyncCall") -> None:
        """Wait until a call has its outcome.

        Raises:
            asyncio.CancelledError: the caller left; rows that still wait never run.
        """
        if call.outcome is not None:
            return
        call.waiter = self._loop.create_future()
        try:
            await call.waiter
        except asyncio.CancelledError:
            self._batcher.cancel(call.request)
            raise

    def cancel(self, call: "AsyncCall") -> None:
        """Forget a call whose caller has left."""
        self._batcher.cancel(call.request)

    def post(self, call: "AsyncCall", outcome: Outcome) -> None:
        """Hand an outcome to the loop, from any thread."""
        self._outcomes.append((call, outcome))
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_woken = False  # before the first pop: later posts wake again
        while self._outcomes:
            call, outcome = self._outcomes.popleft()
            call.outcome = outcome
            if call.waiter is not None and not call.waiter.done():  # done: cancelled meanwhile
                call.waiter.set_result(None)


class Caller(NamedTuple):
    """A caller and its deadline."""

    peer: str
    """The connection: connections take turns."""
    deadline_s: float
    """On the monotonic clock; math.inf if there is none."""

    @classmethod
    def of(cls, context: Context) -> Self:
        """Read them from the context; once for a stream, since it costs more than a message."""
        remaining_s = context.time_remaining()
        return cls(
            context.peer(), math.inf if remaining_s is None else time.monotonic() + remaining_s
        )


class AsyncCall:
    """A request whose outcome comes to this loop."""

    __slots__ = ("outcome", "plan", "request", "waiter")

    def __init__(self, pixels: bytes | memoryview, plan: Plan, caller: Caller) -> None:
        """Wrap images; the deadline is the caller's, or the request's own if that is sooner."""
        peer, deadline_s = caller
        if plan.timeout_s is not None:
            deadline_s = min(deadline_s, time.monotonic() + plan.timeout_s)
        self.request = Request(pixels, plan.num_rows, caller=peer, deadline_s=deadline_s)
        self.plan = plan
        self.outcome: Outcome | None = None
        self.waiter: asyncio.Future[None] | None = None
        """Done once there is an outcome."""

    def result(self) -> Answer:
        """Return the answer of a settled call; raises DigitsError if it was rejected."""
        if isinstance(self.outcome, DigitsError):
            raise self.outcome
        assert self.outcome is not None, "not settled"
        return self.outcome

    def response(self) -> bytes:
        """Encode the answer; raises what `result` raises."""
        return self.plan.respond(self.result())
