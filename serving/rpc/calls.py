"""The calls in progress on an event loop: carried to the batcher, and their outcomes back."""

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc

from serving.batcher import Batcher
from serving.errors import DigitsError, ModelError, Unavailable
from serving.metrics import Metrics
from serving.requests import Answer, Request
from serving.rpc.status import STATUS, abort

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Awaitable[Any]]

_log = logging.getLogger(__name__)


class Calls:
    """Submits to a batcher from one event loop.

    Outcomes come from the runners' threads; they are posted to the loop together, with one
    wake-up for as many as are ready: waking a loop costs more than an outcome does.
    """

    def __init__(self, batcher: Batcher, metrics: Metrics) -> None:
        """Bind to the running event loop."""
        self._batcher = batcher
        self._metrics = metrics
        self._loop = asyncio.get_running_loop()
        self._outcomes: deque[tuple[asyncio.Future[Answer], Answer | DigitsError]] = deque()
        self._is_woken = False
        self._is_released: asyncio.Event | None = None
        self.num_begun = self.num_active = 0

    def guarded(self, handler: Handler, method: str = "other") -> Handler:
        """Wrap a handler: count its calls, and let whatever it raises leave as one status.

        The texts of our own errors are shown; any other exception is logged here and leaves as
        INTERNAL without its text.

        Args:
            handler: a coroutine of (request, context).
            method: the name to count its calls under.
        """

        async def guarded_handler(request: Any, context: Context) -> Any:
            self.num_begun += 1
            self.num_active += 1
            error: DigitsError | None = None
            try:
                return await handler(request, context)
            except DigitsError as err:
                error = err
            except asyncio.CancelledError:
                # Escaping, it leaves a caller that is still there without a status (grpc #29248).
                error = Unavailable("the call was cut off")
            except Exception:
                _log.exception("a handler failed")
                error = ModelError("internal error")
            finally:
                self.num_active -= 1
                self._metrics.count(method, STATUS[type(error)].name if error else "OK")
            if isinstance(error, Unavailable) and self._is_released is not None:
                with suppress(asyncio.CancelledError):
                    await self._is_released.wait()
            return await abort(context, error)

        return guarded_handler

    def hold_refused(self) -> None:
        """Keep calls that are refused as Unavailable until `release`.

        Callers that come again at once would never leave a moment without new calls otherwise, and
        those that a stop finds pending in gRPC's core are answered CANCELLED (grpc #41785).
        """
        self._is_released = asyncio.Event()

    def release(self) -> None:
        """Let the held calls have their status."""
        if self._is_released is not None:
            self._is_released.set()

    async def answer(self, pixels: bytes | memoryview, context: Context) -> Answer:
        """Queue N x 784 bytes and wait for their answer.

        Raises:
            DigitsError: the request was rejected.
            asyncio.CancelledError: the caller left; rows that still wait never run.
        """
        call = AsyncCall(self, pixels, context)
        self.submit(call)
        return await self.outcome(call)

    def submit(self, call: "AsyncCall") -> None:
        """Queue a call; raises what `Batcher.submit` raises."""
        self._batcher.submit(call)

    async def outcome(self, call: "AsyncCall") -> Answer:
        """Wait for the outcome of a call; raises what `answer` raises."""
        try:
            return await call.future
        except asyncio.CancelledError:
            self._batcher.cancel(call)
            raise

    def cancel(self, call: "AsyncCall") -> None:
        """Forget a call that nobody waits for any more."""
        self._batcher.cancel(call)
        call.future.cancel()

    def create_future(self) -> "asyncio.Future[Answer]":
        """Create a future on this loop."""
        return self._loop.create_future()

    def post(self, future: "asyncio.Future[Answer]", outcome: Answer | DigitsError) -> None:
        """Hand an outcome to the loop, from any thread."""
        self._outcomes.append((future, outcome))
        if not self._is_woken:
            self._is_woken = True
            self._loop.call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._is_woken = False  # before the first pop: what is posted from here on wakes again
        while self._outcomes:
            future, outcome = self._outcomes.popleft()
            if future.done():  # cancelled meanwhile
                continue
            if isinstance(outcome, DigitsError):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)


class AsyncCall(Request):
    """A request whose caller awaits a future of this loop."""

    __slots__ = ("_calls", "future")

    def __init__(self, calls: Calls, pixels: bytes | memoryview, context: Context) -> None:
        """Wrap N x 784 bytes; the deadline is the call's own."""
        remaining_s = context.time_remaining()
        deadline_s = math.inf if remaining_s is None else time.monotonic() + remaining_s
        super().__init__(pixels, caller=context.peer(), deadline_s=deadline_s)
        self._calls = calls
        self.future = calls.create_future()

    def resolve(self, answer: Answer) -> None:
        """See `Request`."""
        self.pixels = b""  # answers of a stream whose caller doesn't read wait without them
        self._calls.post(self.future, answer)

    def reject(self, error: DigitsError) -> None:
        """See `Request`."""
        self._calls.post(self.future, error)
