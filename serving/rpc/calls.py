"""Carries a request from an event loop to the batcher and its outcome back."""

import asyncio
import math
import time
from collections import deque
from typing import Any

import grpc

from serving.batcher import Batcher
from serving.errors import DigitsError
from serving.requests import Answer, Request


class Calls:
    """Submits to a batcher from one event loop.

    Outcomes come from the runners' threads; they are posted to the loop together, with one
    wake-up for as many as are ready: waking a loop costs more than an outcome does.
    """

    def __init__(self, batcher: Batcher) -> None:
        """Bind to the running event loop."""
        self._batcher = batcher
        self._loop = asyncio.get_running_loop()
        self._outcomes: deque[tuple[asyncio.Future[Answer], Answer | DigitsError]] = deque()
        self._is_woken = False

    async def answer(
        self, pixels: memoryview, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> Answer:
        """Queue N x 784 bytes and wait for their answer.

        Raises:
            DigitsError: the request was rejected.
            asyncio.CancelledError: the caller left; rows that still wait never run.
        """
        call = _AsyncCall(self, pixels, context)
        self._batcher.submit(call)
        try:
            return await call.future
        except asyncio.CancelledError:
            self._batcher.cancel(call)
            raise

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


class _AsyncCall(Request):
    __slots__ = ("_calls", "future")

    def __init__(
        self, calls: Calls, pixels: memoryview, context: "grpc.aio.ServicerContext[Any, Any]"
    ) -> None:
        remaining_s = context.time_remaining()
        deadline_s = math.inf if remaining_s is None else time.monotonic() + remaining_s
        super().__init__(pixels, caller=context.peer(), deadline_s=deadline_s)
        self._calls = calls
        self.future = calls.create_future()

    def resolve(self, answer: Answer) -> None:
        self._calls.post(self.future, answer)

    def reject(self, error: DigitsError) -> None:
        self._calls.post(self.future, error)
