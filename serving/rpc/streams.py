"""A bidirectional stream: answers in the order of the requests, a bounded number in flight.

When the caller stops reading its answers, the window fills and its requests are no longer read, so
HTTP/2's flow control stops it. A full queue has the same effect: a stream slows down, and is never
rejected half-way.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from serving.errors import Overloaded
from serving.rpc.calls import Context

_WINDOW = 64
"""The most requests of one stream that are in flight."""
_WINDOW_BYTES = 4 << 20
"""The most that they hold together, one of any size apart: bounds what a stream costs whose caller
sends the largest requests and reads nothing."""
_PAUSE_S = 0.005
"""How long a stream pauses while the queue is full."""

Item = TypeVar("Item")


async def answer_stream(
    requests: AsyncIterator[bytes],
    context: Context,
    begin: Callable[[bytes], Awaitable[Item]],
    finish: Callable[[Item], Awaitable[bytes]],
    cancel: Callable[[Item], None],
) -> None:
    """Answer each request of a stream.

    Args:
        requests: the messages that the caller sends.
        context: where the answers are written.
        begin: decodes a message and submits it; what it returns is in flight.
        finish: waits for the outcome of what is in flight, and encodes it.
        cancel: forgets what is in flight when the stream ends before its answer.

    Raises:
        Exception: what `begin` or `finish` raised; the earlier requests were answered.
    """
    window: asyncio.Queue[tuple[Item, int] | Exception | None] = asyncio.Queue()
    places = _Places()

    async def read() -> None:
        """Begin what the caller sends; end the window with None, or with what went wrong."""
        try:
            async for data in requests:
                await places.acquire(len(data))  # first: what was submitted is never left out
                window.put_nowait((await begin(data), len(data)))
            window.put_nowait(None)
        except Exception as err:  # else the stream would wait for an end that never comes
            window.put_nowait(err)

    reader = asyncio.create_task(read())
    try:
        while (entry := await window.get()) is not None:
            if isinstance(entry, Exception):
                raise entry
            item, num_bytes = entry
            await context.write(await finish(item))
            places.release(num_bytes)
    finally:
        reader.cancel()
        while not window.empty():
            if isinstance(entry := window.get_nowait(), tuple):
                cancel(entry[0])


class _Places:
    """Room for requests in flight, of one reader: by their number and by their bytes."""

    def __init__(self) -> None:
        self._num_requests = self._num_bytes = 0
        self._freed = asyncio.Event()

    async def acquire(self, num_bytes: int) -> None:
        """Wait for room; alone, a request of any size has it."""
        while self._num_requests and (
            self._num_requests == _WINDOW or self._num_bytes + num_bytes > _WINDOW_BYTES
        ):
            self._freed.clear()
            await self._freed.wait()
        self._num_requests += 1
        self._num_bytes += num_bytes

    def release(self, num_bytes: int) -> None:
        """Give room back."""
        self._num_requests -= 1
        self._num_bytes -= num_bytes
        self._freed.set()


async def submit_patiently(submit: Callable[[], None]) -> None:
    """Call `submit` until the queue has room; raises what it raises but Overloaded."""
    while True:
        try:
            return submit()
        except Overloaded:
            await asyncio.sleep(_PAUSE_S)
