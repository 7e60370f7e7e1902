"""A bidirectional stream: answers in the order of the requests, a bounded number in flight.

If the caller stops reading its answers, the window fills and its requests are no longer read, so
HTTP/2's flow control stops it. A full queue has the same effect: a stream slows down and is never
rejected in the middle.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Iterator
from typing import Self

import grpc

from serving.errors import DigitsError, Overloaded
from serving.transports.grpcio.calls import AsyncCall, Calls, Context

_WINDOW = 64
"""The most requests of one stream that are in flight."""
_WINDOW_BYTES = 4 << 20
"""The most bytes that they have together, except for a single larger one: bounds a stream whose
caller sends the largest requests and reads nothing."""
_PAUSE_S = 0.005
"""How long a stream pauses while the queue is full."""


Begun = tuple[AsyncCall | None, Callable[[], bytes]]
"""A request of a stream: its call, or None if it was refused; and a function that encodes its
response once the call is settled."""


async def answer_stream(calls: Calls, context: Context, begin: Callable[[bytes], Begun]) -> None:
    """Answer each request of a stream.

    Args:
        calls: submits the calls.
        context: where requests are read and responses are written.
        begin: decodes a message.

    Raises:
        Exception: `begin` or a response raised it; the earlier requests were answered.
    """
    window = _Window()

    async def read() -> None:
        """Begin the caller's requests; end the window at the end, or with an error."""
        error: Exception | None = None
        try:
            while (data := await context.read()) is not grpc.aio.EOF:
                await window.wait_for_room(len(data))  # first: what is submitted must fit in
                call, respond = begin(data)
                if call is not None:
                    await _submit(calls, call)
                window.put(call, respond, len(data))
        except Exception as err:  # else the writer would wait for ever
            error = err
        window.end(error)

    reader = asyncio.create_task(read())
    try:
        async for call, respond, num_bytes in window:
            if call is not None:
                await calls.settled(call)
            await context.write(respond())
            window.release(num_bytes)
    finally:
        reader.cancel()
        for call in window.unanswered():
            calls.cancel(call)


_Entry = tuple[AsyncCall | None, Callable[[], bytes], int]
"""A request, and its bytes."""


class _Window:
    """The requests in flight, in order: one task puts them in, another takes them out."""

    def __init__(self) -> None:
        self._entries: deque[_Entry] = deque()
        self._loop = asyncio.get_running_loop()
        self._is_ended = False
        self._error: Exception | None = None
        self._num_requests = self._num_bytes = 0
        self._room: asyncio.Future[None] | None = None
        self._ready: asyncio.Future[None] | None = None

    async def wait_for_room(self, num_bytes: int) -> None:
        """Wait until a request fits in; an empty window takes one of any size."""
        while self._num_requests and (
            self._num_requests == _WINDOW or self._num_bytes + num_bytes > _WINDOW_BYTES
        ):
            self._room = self._loop.create_future()
            await self._room
            self._room = None

    def put(self, call: AsyncCall | None, respond: Callable[[], bytes], num_bytes: int) -> None:
        """Add a request; `release` frees its room."""
        self._entries.append((call, respond, num_bytes))
        self._num_requests += 1
        self._num_bytes += num_bytes
        if call is None or call.outcome is not None:
            self._wake_writer()
        elif self._ready is not None:
            # There is nothing to write before its outcome, which wakes the writer.
            call.waiter, self._ready = self._ready, None

    def end(self, error: Exception | None) -> None:
        """Mark the end of the requests, with an error if there was one."""
        self._is_ended, self._error = True, error
        self._wake_writer()

    def release(self, num_bytes: int) -> None:
        """Free the room of an answered request."""
        self._num_requests -= 1
        self._num_bytes -= num_bytes
        if self._room is not None and not self._room.done():  # done: cancelled meanwhile
            self._room.set_result(None)

    def unanswered(self) -> Iterator[AsyncCall]:
        """Yield the calls that were put in and not taken out."""
        return (call for call, _, _ in self._entries if call is not None)

    def _wake_writer(self) -> None:
        if self._ready is not None and not self._ready.done():  # done: cancelled meanwhile
            self._ready.set_result(None)

    def __aiter__(self) -> Self:
        """Take the requests out; raises the error that the window was ended with."""
        return self

    async def __anext__(self) -> _Entry:
        while not self._entries:
            if self._error is not None:
                raise self._error
            if self._is_ended:
                raise StopAsyncIteration
            self._ready = self._loop.create_future()
            await self._ready
            self._ready = None
        return self._entries.popleft()


async def _submit(calls: Calls, call: AsyncCall) -> None:
    """Submit a call once the queue has room; settle one that can't be submitted."""
    while True:
        try:
            calls.submit(call)
        except Overloaded:
            await asyncio.sleep(_PAUSE_S)
            continue
        except DigitsError as err:
            call.outcome = err
        return
