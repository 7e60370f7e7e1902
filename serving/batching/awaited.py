"""Requests to a batcher that an event loop awaits."""

import asyncio
import itertools
import math
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
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
    call, number = _Submitted(), next(_numbers)
    try:
        _enter(owner, peer, number, message, encoder, call, deadline_s, enter, headers)
        response = await asyncio.wait_for(call.outcome, _left_s(deadline_s))
    except TimeoutError:
        raise DeadlineExceeded from None
    finally:
        _leave(peer, number)
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
    parts, number = _Parts(owner), next(_numbers)
    try:
        _enter(owner, peer, number, message, encoder, parts, deadline_s, enter, headers)
        while True:
            is_end, response = await asyncio.wait_for(parts.next(), _left_s(deadline_s))
            if response is not None:
                yield response
            if is_end:
                return
    except TimeoutError:
        raise DeadlineExceeded from None
    finally:
        _leave(peer, number)
        parts.resume()  # if nobody waits, it ends


def _enter(
    owner: Owner,
    peer: AsyncCaller,
    number: int,
    message: Any,
    encoder: ResponseEncoder,
    sink: "_Parts | _Submitted",
    deadline_s: float,
    enter: Callable[[Group], int] | None,
    headers: Mapping[str, str] | None,
) -> None:
    """Let a request wait for a run, on the owner's thread; `sink` takes its outcome."""
    peer.streams.add(number)
    if headers:
        peer.headers[number] = headers
    streams: Sequence[Any] = [number]
    group = Group(peer, streams, [message], encoder, sink, time.monotonic(), deadline_s)

    def begin() -> None:
        if not (enter or encoder.target.submit)(group):
            sink.fail(group, Overloaded())

    owner.post(begin)


def _leave(peer: AsyncCaller, number: int) -> None:
    """Forget a request that nobody waits for any more."""
    peer.streams.discard(number)
    peer.headers.pop(number, None)


def _left_s(deadline_s: float) -> float | None:
    return None if deadline_s == math.inf else deadline_s - time.monotonic()


class _Parts:
    """Takes the parts of one call's answer, on the owner's thread."""

    def __init__(self, owner: Owner) -> None:
        self._loop, self._owner = asyncio.get_running_loop(), owner
        self._came: asyncio.Queue[tuple[bool, Any]] = asyncio.Queue()
        self._resume: Callable[[], None] | None = None

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

    def answer(self, group: Group, responses: Sequence[Any], run: Ran) -> None:
        if responses:
            self.run = run
            self._loop.call_soon_threadsafe(self._settle, self.outcome.set_result, responses[0])

    def fail(self, group: Group, error: ServingError) -> None:
        self._loop.call_soon_threadsafe(self._settle, self.outcome.set_exception, error)

    def _settle(self, settle: Callable[[Any], None], outcome: Any) -> None:
        if not self.outcome.done():  # cancelled meanwhile
            settle(outcome)
