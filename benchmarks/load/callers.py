"""The load of a target in this process: threads that call it, or tasks that await it."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from time import perf_counter, process_time

import numpy as np

from benchmarks.load.trace import Load, Trace
from serving.images import Images

Call = Callable[[Images], object]
AwaitedCall = Callable[[Images], Awaitable[object]]


class _Tally:
    """Latencies and failures of all callers: `list.append` needs no lock."""

    def __init__(self) -> None:
        self.begin_s, self._cpu_s = perf_counter(), process_time()
        self.latencies_s: list[float] = []
        self.failures: list[Exception] = []

    def end(self, start_s: float) -> float:
        """Note that a call ended; return the time."""
        now_s = perf_counter()
        self.latencies_s.append(now_s - start_s)
        return now_s

    def trace(self, generator: str) -> Trace:
        duration_s = perf_counter() - self.begin_s
        return Trace(
            generator=generator, duration_s=duration_s, num_errors=len(self.failures),
            latencies_s=np.array(self.latencies_s, np.float64),
            busy=(process_time() - self._cpu_s) / duration_s,
        )  # fmt: skip


class ThreadLoad(Load):
    """Calls a function of images from threads; see `Load`."""

    def __init__(self, call: Call, images: Images) -> None:
        """Take a target.

        Args:
            call: classifies (N, 784) uint8, and returns when it is done.
            images: (M, 784) uint8; a call gets the first `batch` of them.
        """
        self._call, self._images = call, images

    def closed(self, callers: int, batch: int, seconds: float, connections: int = 0) -> Trace:
        """See `Load.closed`."""
        images = self._images[:batch]
        self._call(images)  # set-up at the first call of a size is not timed
        tally = _Tally()

        def caller() -> None:
            now_s = tally.begin_s
            while now_s < tally.begin_s + seconds:
                try:
                    self._call(images)
                except Exception as err:  # of any kind: the call has failed
                    tally.failures.append(err)
                now_s = tally.end(now_s)

        threads = [threading.Thread(target=caller) for _ in range(callers - 1)]
        for thread in threads:
            thread.start()
        caller()  # in this very thread, if one is enough
        for thread in threads:
            thread.join()
        return tally.trace("threads")


class TaskLoad(Load):
    """Awaits a function of images in tasks of one event loop, which it keeps."""

    def __init__(self, call: AwaitedCall, images: Images) -> None:
        """See `ThreadLoad`."""
        self._call, self._images = call, images
        self._loop = asyncio.new_event_loop()

    def close(self) -> None:
        """Close the event loop."""
        self._loop.close()

    def closed(self, callers: int, batch: int, seconds: float, connections: int = 0) -> Trace:
        """See `Load.closed`."""
        return self._loop.run_until_complete(self._closed(callers, self._images[:batch], seconds))

    async def _closed(self, callers: int, images: Images, seconds: float) -> Trace:
        await self._call(images)  # set-up at the first call of a size is not timed
        tally = _Tally()

        async def caller() -> None:
            now_s = tally.begin_s
            while now_s < tally.begin_s + seconds:
                try:
                    await self._call(images)
                except Exception as err:  # of any kind: the call has failed
                    tally.failures.append(err)
                now_s = tally.end(now_s)

        await asyncio.gather(*(caller() for _ in range(callers)))
        return tally.trace("tasks")
