"""A bidirectional stream: answers in the order of the requests, a bounded number in flight.

When the caller stops reading its answers, the window fills and its requests are no longer read, so
HTTP/2's flow control stops it. A full queue has the same effect: a stream slows down, and is never
rejected half-way.
"""

import asyncio
from collections.abc import AsyncIterator, Callable

from serving.errors import Overloaded
from serving.requests import Answer
from serving.rpc.calls import AsyncCall, Calls, Context

_WINDOW = 64
"""The most requests of one stream that are in flight."""
_PAUSE_S = 0.005
"""How long a stream pauses while the queue is full."""

Decode = Callable[[bytes], bytes | memoryview]
Encode = Callable[[Answer], bytes]


async def answer_stream(
    calls: Calls, requests: AsyncIterator[bytes], context: Context, decode: Decode, encode: Encode
) -> None:
    """Answer each request of a stream.

    Raises:
        DigitsError: a request was bad or failed; the earlier ones were answered.
    """
    window: asyncio.Queue[AsyncCall | Exception | None] = asyncio.Queue()
    places = asyncio.Semaphore(_WINDOW)

    async def read() -> None:
        """Queue what the caller sends; end the window with None, or with what went wrong."""
        try:
            async for data in requests:
                await places.acquire()  # first: nothing that was submitted may be left out
                window.put_nowait(await _submit(calls, decode(data), context))
            window.put_nowait(None)
        except Exception as err:  # else the stream would wait for an end that never comes
            window.put_nowait(err)

    reader = asyncio.create_task(read())
    try:
        while (call := await window.get()) is not None:
            if isinstance(call, Exception):
                raise call
            await context.write(encode(await calls.outcome(call)))
            places.release()
    finally:
        reader.cancel()
        while not window.empty():
            if isinstance(call := window.get_nowait(), AsyncCall):
                calls.cancel(call)


async def _submit(calls: Calls, pixels: bytes | memoryview, context: Context) -> AsyncCall:
    while True:
        try:
            return calls.submit(pixels, context)
        except Overloaded:
            await asyncio.sleep(_PAUSE_S)
