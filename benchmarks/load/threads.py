"""The load of a target in this process: threads that call it."""

import itertools
import threading
from collections.abc import Callable
from time import perf_counter, process_time, sleep

import numpy as np

from benchmarks.load.trace import Seconds, Trace
from serving.images import Images

NAME = "threads"

Call = Callable[[Images], object]


class ThreadLoad:
    """Calls a function of images from threads; see `Load`."""

    def __init__(self, call: Call, images: Images, max_callers: int = 16) -> None:
        """Take a target.

        Args:
            call: classifies (N, 784) uint8 and returns when it is done.
            images: (M, 784) uint8; a call gets the first `batch` of them.
            max_callers: threads of an open loop. When all are busy a call starts late, which its
                latency tells.
        """
        self._call = call
        self._images = images
        self._max_callers = max_callers

    def closed(self, callers: int, batch: int, seconds: float, connections: int = 0) -> Trace:
        """See `Load.closed`."""
        images, call = self._images[:batch], self._call
        call(images)  # what is made at the first call of a size is not timed

        def caller(recorder: "_Recorder") -> None:
            now_s = recorder.begin_s
            while now_s < recorder.stop_s:
                recorder.time(call, images, now_s)
                now_s = perf_counter()

        return _run(caller, callers, seconds)

    def open(self, offsets_s: Seconds, batch: int) -> Trace:
        """See `Load.open`."""
        images, call = self._images[:batch], self._call
        call(images)
        offsets, arrivals = offsets_s.tolist(), itertools.count()

        def caller(recorder: "_Recorder") -> None:
            while (number := next(arrivals)) < len(offsets):
                intended_s = recorder.begin_s + offsets[number]
                if (ahead_s := intended_s - perf_counter()) > 0:
                    sleep(ahead_s)
                    recorder.lag_s.append(perf_counter() - intended_s)
                recorder.time(call, images, intended_s)

        return _run(caller, self._max_callers, offsets[-1])

    def overload(self, rate: float, seconds: float, *, with_timeout: bool) -> Trace:
        """Raise OSError: there is no network whose callers could give up."""
        raise OSError("overload needs a server")


class _Recorder:
    """What one thread keeps."""

    def __init__(self, begin_s: float, stop_s: float) -> None:
        self.begin_s, self.stop_s = begin_s, stop_s
        self.latencies_s: list[float] = []
        self.lag_s: list[float] = []
        self.num_errors = 0

    def time(self, call: Call, images: Images, start_s: float) -> None:
        try:
            call(images)
        except Exception:  # whatever a target raises, the call has failed
            self.num_errors += 1
        self.latencies_s.append(perf_counter() - start_s)


def _run(caller: Callable[[_Recorder], None], num_threads: int, seconds: float) -> Trace:
    """Run `caller` in threads (in this very one, if one is enough) and join what they kept."""
    begin_s, cpu_s = perf_counter(), process_time()
    recorders = [_Recorder(begin_s, begin_s + seconds) for _ in range(num_threads)]
    threads = [threading.Thread(target=caller, args=(each,)) for each in recorders[1:]]
    for thread in threads:
        thread.start()
    caller(recorders[0])
    for thread in threads:
        thread.join()
    duration_s = perf_counter() - begin_s
    return Trace(
        generator=NAME,
        latencies_s=np.concatenate([each.latencies_s for each in recorders]),
        duration_s=duration_s,
        num_errors=sum(each.num_errors for each in recorders),
        lag_s=np.concatenate([each.lag_s for each in recorders]),
        busy=(process_time() - cpu_s) / duration_s,
    )
