"""The load of a target that is awaited: tasks of one event loop that call it."""

import asyncio
from collections.abc import Awaitable, Callable
from time import perf_counter, process_time

import numpy as np

from benchmarks.load.trace import Deadline, Seconds, Trace
from serving.images import Images

AwaitedCall = Callable[[Images], Awaitable[object]]


class TaskLoad:
    """Awaits a function of images in tasks of one event loop, which it keeps; see `Load`."""

    def __init__(self, call: AwaitedCall, images: Images) -> None:
        """Take a target.

        Args:
            call: classifies (N, 784) uint8, awaited.
            images: (M, 784) uint8; a call gets the first `batch` of them.
        """
        self._call, self._images = call, images
        self._loop = asyncio.new_event_loop()

    def close(self) -> None:
        """Close the event loop."""
        self._loop.close()

    def closed(self, callers: int, batch: int, seconds: float, connections: int = 0) -> Trace:
        """See `Load.closed`."""
        return self._loop.run_until_complete(self._closed(callers, self._images[:batch], seconds))

    def open(self, offsets_s: Seconds, batch: int, deadline: Deadline = Deadline.NONE) -> Trace:
        """See `Load.open`; not for tasks."""
        raise OSError("tasks are measured in closed loops only")

    async def _closed(self, callers: int, images: Images, seconds: float) -> Trace:
        latencies_s: list[float] = []
        num_errors = 0

        async def caller() -> None:
            nonlocal num_errors
            now_s = begin_s
            while now_s < begin_s + seconds:
                start_s = now_s
                try:
                    await self._call(images)
                except Exception:  # whatever a target raises, the call has failed
                    num_errors += 1
                now_s = perf_counter()
                latencies_s.append(now_s - start_s)

        await self._call(images)  # what is made at the first call of a size is not timed
        begin_s, cpu_s = perf_counter(), process_time()
        await asyncio.gather(*(caller() for _ in range(callers)))
        duration_s = perf_counter() - begin_s
        return Trace(
            generator="tasks", duration_s=duration_s, busy=(process_time() - cpu_s) / duration_s,
            latencies_s=np.array(latencies_s, np.float64), num_errors=num_errors,
        )  # fmt: skip
