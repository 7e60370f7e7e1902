"""Requests to a batcher that an event loop awaits."""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from functools import partial
from typing import Any

from serving.batching.queue import ClientQueue, Queue
from serving.batching.run import NEVER, Group, Owner, Ran, ResponseEncoder
from serving.errors import DeadlineExceeded, Overloaded, ServingError

_numbers = itertools.count()


class AsyncCaller:
    """Who sends calls: they take turns with those of others."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.streams: set[Any] = set()
        self.queues: dict[Queue, ClientQueue] = {}
        self.gave_up_s = -math.inf
        self.headers: dict[Any, Mapping[str, str]] = {}
        """Those of its calls, as far as a handler may want them."""

    def metadata(self, stream: Any) -> Mapping[str, str]:
        """A caller whose calls are awaited on an event loop."""
        return self.headers.get(stream, {})


def submit_of_stream(group: Group) -> int:
    """Let a message of a stream wait for a run, if there is room; see `Entry.submit`."""
    target = group.encoder.target
    if not target.room_for_stream(group.num_rows):
        return 0
    target.add(group)
    return 1


async def submit(
    owner: Owner,
    peer: AsyncCaller,
    message: Any,
    encoder: ResponseEncoder,
    deadline_s: float = math.inf,
    enter: Callable[[Group], int] | None = None,
    headers: Mapping[str, str] | None = None,
) -> tuple[Any, Ran]:
    """Have a request run; if the task is cancelled, it does not run.

    Args:
        owner: the thread of the entries.
        peer: who sends it.
        message: its rows.
        encoder: makes its answer.
        deadline_s: when it is late, in monotonic seconds.
        enter: lets it wait, on the owner's thread; by default as a unary call.
        headers: the call's, for a handler.

    Returns:
        The response, and the run.

    Raises:
        Overloaded: there is no room in the queue.
        DeadlineExceeded: the deadline came first.
        ModelError: the run failed.
    """
    call, arrived_s, number = _Submitted(), time.monotonic(), next(_numbers)
    peer.streams.add(number)
    if headers:
        peer.headers[number] = headers
    streams: Sequence[Any] = [number]
    group = Group(peer, streams, [message], encoder, call, arrived_s, deadline_s)
    owner.post(partial(call.begin, enter or encoder.target.submit, group))
    try:
        left_s = None if deadline_s == math.inf else deadline_s - arrived_s
        response = await asyncio.wait_for(call.outcome, left_s)
    except TimeoutError:
        raise DeadlineExceeded from None
    finally:
        peer.streams.discard(number)
        peer.headers.pop(number, None)
    return response, call.run


async def submit_parts(
    owner: Owner,
    peer: AsyncCaller,
    message: Any,
    encoder: ResponseEncoder,
    deadline_s: float = math.inf,
    enter: Callable[[Group], int] | None = None,
    headers: Mapping[str, str] | None = None,
) -> AsyncGenerator[Any, None]:
    """Have a request answered in parts, and yield them; see `submit`.

    The next part is made once this one was taken. Closed, no further one is.
    """
    parts, arrived_s, number = _Parts(owner), time.monotonic(), next(_numbers)
    peer.streams.add(number)
    if headers:
        peer.headers[number] = headers
    streams: Sequence[Any] = [number]
    group = Group(peer, streams, [message], encoder, parts, arrived_s, deadline_s)
    owner.post(partial(parts.begin, enter or encoder.target.submit, group))
    try:
        while True:
            left_s = None if deadline_s == math.inf else deadline_s - time.monotonic()
            is_end, response = await asyncio.wait_for(parts.next(), left_s)
            if response is not None:
                yield response
            if is_end:
                return
    except TimeoutError:
        raise DeadlineExceeded from None
    finally:
        peer.streams.discard(number)
        peer.headers.pop(number, None)
        parts.resume()  # if nobody waits, it ends


class _Parts:
    """Takes the parts of one call's answer, on the owner's thread."""

    def __init__(self, owner: Owner) -> None:
        self._loop, self._owner = asyncio.get_running_loop(), owner
        self._came: asyncio.Queue[tuple[bool, Any]] = asyncio.Queue()
        self._resume: Callable[[], None] | None = None

    def begin(self, enter: Callable[[Group], int], group: Group) -> None:
        if not enter(group):
            self.fail(group, Overloaded())

    async def next(self) -> tuple[bool, Any]:
        """Wait for the next part; returns whether it is the end, and the part, if there is one.

        Raises:
            ServingError: it is an error.
        """
        self.resume()
        is_end, outcome = await self._came.get()
        if isinstance(outcome, ServingError):
            raise outcome
        return is_end, outcome

    def resume(self) -> None:
        """Have the next part made, if this one is taken."""
        resume, self._resume = self._resume, None
        if resume is not None:
            self._owner.post(resume)

    def take_part(self, group: Group, response: Any, resume: Callable[[], None]) -> None:
        self._loop.call_soon_threadsafe(self._put, response, resume)

    def _put(self, response: Any, resume: Callable[[], None]) -> None:
        self._resume = resume
        self._came.put_nowait((False, response))

    def answer(self, group: Group, responses: Sequence[Any], run: Ran) -> None:
        if responses:
            self._loop.call_soon_threadsafe(self._came.put_nowait, (True, responses[0]))

    def fail(self, group: Group, error: ServingError) -> None:
        self._loop.call_soon_threadsafe(self._came.put_nowait, (True, error))


class _Submitted:
    """Takes the outcome of one call, on the owner's thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[Any] = self._loop.create_future()
        self.run = NEVER
        """The run that answered it."""

    def begin(self, enter: Callable[[Group], int], group: Group) -> None:
        if not enter(group):
            self.fail(group, Overloaded())

    def answer(self, group: Group, responses: Sequence[Any], run: Ran) -> None:
        if responses:
            self.run = run
            self._loop.call_soon_threadsafe(self._settle, self.outcome.set_result, responses[0])

    def fail(self, group: Group, error: ServingError) -> None:
        self._loop.call_soon_threadsafe(self._settle, self.outcome.set_exception, error)

    def _settle(self, settle: Callable[[Any], None], outcome: Any) -> None:
        if not self.outcome.done():  # cancelled meanwhile
            settle(outcome)
