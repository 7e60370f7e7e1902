"""The model alone: ONNX Runtime as the server runs it, in a process of its own."""

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter, process_time

import numpy as np

from benchmarks.load.cores import worker
from benchmarks.load.trace import Load, Trace
from benchmarks.targets.target import NotMeasured, Running, Setting, Spec
from benchmarks.targets.workload import Workload
from serving.errors import DigitsError
from serving.model.engine import LoadedModel
from serving.model.loading import load_model


class _RemoteLoad(Load):
    """Passes loads on to the model's process; see `Load`."""

    def __init__(self, pool: ProcessPoolExecutor) -> None:
        self._pool = pool

    def closed(self, callers: int, batch: int, seconds: float, connections: int = 0) -> Trace:
        return self._pool.submit(_closed, callers, batch, seconds).result()


@contextmanager
def open_engine(spec: Spec, setting: Setting) -> Iterator[Running]:
    """Load the model in a fresh process on the target's cores.

    Raises:
        NotMeasured: it can't run here.
    """
    begin_s = perf_counter()
    path = setting.model or setting.models / "digits"
    with worker(setting.cores) as pool:
        try:
            pid = pool.submit(_open, path, spec, setting.workload).result()
        except BrokenProcessPool as err:
            raise NotMeasured("its process died while it started") from err
        except DigitsError as err:
            raise NotMeasured(str(err)) from err
        # On a GPU one thread: ONNX Runtime's handles are made for each.
        parallel_calls = 1 if spec.device == "cuda" else len(setting.cores)
        yield Running(
            load=_RemoteLoad(pool), startup_s=perf_counter() - begin_s,
            parallel_calls=parallel_calls, pid=pid,
        )  # fmt: skip


_opened: tuple[LoadedModel, Workload]
"""In the model's process."""


def _open(path: Path, spec: Spec, workload: Workload) -> int:
    """Load the model in this process, and run it once."""
    global _opened
    model = load_model(path, None, spec.device, spec.precision)  # type: ignore[arg-type]
    _opened = model, workload
    model.run(workload.feeds(1))
    return os.getpid()


def _closed(callers: int, batch: int, seconds: float) -> Trace:
    model, workload = _opened
    feeds = workload.feeds(batch)
    model.run(feeds)  # set-up at the first call of a size is not timed
    latencies_s, failures = list[float](), list[Exception]()
    begin_s, cpu_s = perf_counter(), process_time()

    def call_again_and_again() -> None:
        now_s = begin_s
        while now_s < begin_s + seconds:
            start_s = now_s
            try:
                model.run(feeds)
            except DigitsError as err:
                failures.append(err)
            now_s = perf_counter()
            latencies_s.append(now_s - start_s)

    threads = [threading.Thread(target=call_again_and_again) for _ in range(callers - 1)]
    for thread in threads:
        thread.start()
    call_again_and_again()  # in this very thread, if one is enough
    for thread in threads:
        thread.join()
    duration_s = perf_counter() - begin_s
    return Trace(
        generator="threads", duration_s=duration_s, num_errors=len(failures),
        latencies_s=np.array(latencies_s, np.float64), busy=(process_time() - cpu_s) / duration_s,
    )  # fmt: skip
