"""The load of a target in this process: threads that call it."""

import itertools
import threading
from collections.abc import Callable
from time import perf_counter, process_time, sleep

import numpy as np

from benchmarks.load.trace import Deadline, Seconds, Trace
from serving.images import Images

Call = Callable[[Images], object]


class ThreadLoad:
    """Calls a function of images from threads; see `Load`."""

    def __init__(self, call: Call, images: Images, max_callers: int = 16) -> None:
        """Take a target.

        Args:
            call: classifies (N, 784) uint8, and returns when it is done.
            images: (M, 784) uint8; a call gets the first `batch` of them.
            max_callers: threads of an open loop. When all are busy a call starts late, which
                counts in its latency.
        """
        self._call = call
        self._images = images
        self._max_callers = max_callers

    def closed(self, callers: int, batch: int, seconds: float, connections: int = 0) -> Trace:
        """See `Load.closed`."""

        def caller(log: "_Log") -> None:
            now_s = log.begin_s
            while now_s < log.begin_s + seconds:
                log.time(now_s)
                now_s = perf_counter()

        return self._run(caller, callers, batch)

    def open(self, offsets_s: Seconds, batch: int, deadline: Deadline = Deadline.NONE) -> Trace:
        """See `Load.open`."""
        if deadline is not Deadline.NONE:
            raise OSError("deadlines need a server")
        offsets, arrivals = offsets_s.tolist(), itertools.count()

        def caller(log: "_Log") -> None:
            while (number := next(arrivals)) < len(offsets):
                intended_s = log.begin_s + offsets[number]
                if (ahead_s := intended_s - perf_counter()) > 0:
                    sleep(ahead_s)
                    log.lag_s.append(perf_counter() - intended_s)
                log.time(intended_s)

        return self._run(caller, self._max_callers, batch)

    def _run(self, caller: Callable[["_Log"], None], num_threads: int, batch: int) -> Trace:
        """Run `caller` in threads (in this very one, if one is enough) and join their logs."""
        images = self._images[:batch]
        self._call(images)  # what is made at the first call of a size is not timed
        begin_s, cpu_s = perf_counter(), process_time()
        logs = [_Log(self._call, images, begin_s) for _ in range(num_threads)]
        threads = [threading.Thread(target=caller, args=(each,)) for each in logs[1:]]
        for thread in threads:
            thread.start()
        caller(logs[0])
        for thread in threads:
            thread.join()
        duration_s = perf_counter() - begin_s
        return Trace(
            generator="threads", duration_s=duration_s, busy=(process_time() - cpu_s) / duration_s,
            latencies_s=np.concatenate([each.latencies_s for each in logs]),
            num_errors=sum(each.num_errors for each in logs),
            lag_s=np.concatenate([each.lag_s for each in logs]),
        )  # fmt: skip


class _Log:
    """What one thread calls, and what came of it."""

    def __init__(self, call: Call, images: Images, begin_s: float) -> None:
        self._call, self._images, self.begin_s = call, images, begin_s
        self.latencies_s: list[float] = []
        self.lag_s: list[float] = []
        self.num_errors = 0

    def time(self, start_s: float) -> None:
        try:
            self._call(self._images)
        except Exception:  # whatever a target raises, the call has failed
            self.num_errors += 1
        self.latencies_s.append(perf_counter() - start_s)
