"""A generator of parts for an event loop: each step is on a thread."""

import asyncio
from collections.abc import AsyncGenerator, Generator
from typing import TypeVar

_Part = TypeVar("_Part")


async def stepped(parts: Generator[_Part, None, None]) -> AsyncGenerator[_Part, None]:
    """Yield what a generator yields; closed or cancelled, it closes that behind its step."""
    step: asyncio.Future[_Part | None] | None = None
    try:
        while True:
            step = asyncio.ensure_future(asyncio.to_thread(next, parts, None))
            if (part := await asyncio.shield(step)) is None:
                return
            yield part
    finally:
        if step is not None and not step.done():  # cancelled: the generator is in its step
            await asyncio.wait([step])
        await asyncio.to_thread(parts.close)
