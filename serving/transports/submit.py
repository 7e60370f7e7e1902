"""From an event loop to the batcher and back, for the transports that have an event loop."""

import asyncio
from typing import Any

from serving.batching.batcher import Batcher
from serving.batching.request import Answer, Outcome, Request
from serving.errors import DigitsError


def submit(batcher: Batcher, request: Request) -> "asyncio.Future[Answer]":
    """Queue images, and return the future of their answer; if it is cancelled, they do not run.

    Raises:
        DigitsError: see `Batcher.put`. The future gets the other errors.
    """
    loop = asyncio.get_running_loop()
    answered: asyncio.Future[Answer] = loop.create_future()

    def post(outcome: Outcome) -> None:
        loop.call_soon_threadsafe(_settle, answered, outcome)

    def forget(_: Any) -> None:
        batcher.cancel(request)  # does nothing if there is an outcome

    batcher.put(request, post)
    batcher.wake()
    answered.add_done_callback(forget)
    return answered


def _settle(answered: "asyncio.Future[Answer]", outcome: Outcome) -> None:
    if answered.done():  # cancelled meanwhile
        return
    if isinstance(outcome, DigitsError):
        answered.set_exception(outcome)
    else:
        answered.set_result(outcome)
