"""Bare ONNX Runtime in a process of its own: what a model does without a server."""

import math
import multiprocessing
import os
import signal
import threading
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Self

import numpy as np

from benchmarks.loops import Seconds, Trace
from benchmarks.network import Demand
from benchmarks.workload import Workload
from serving.model.onnx_runtime import runtime
from serving.tensors import Feeds

_session: Any = None
"""The session of this process, once `_begin` has made it."""


def _begin(file: Path, cores: Sequence[int]) -> None:
    """Bind this process to cores, and make a session that uses all of them for a run."""
    global _session
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    os.sched_setaffinity(0, cores)
    options = runtime().SessionOptions()
    options.intra_op_num_threads = len(cores)  # its default counts cores that are not ours
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    _session = runtime().InferenceSession(str(file), options, providers=providers)


def _pid() -> int:
    return os.getpid()


def _run(feeds: Feeds, callers: int, seconds: float) -> Trace:
    """Run the model on as many threads as there are callers, each run after the one before."""
    ended: list[list[float]] = [[] for _ in range(callers)]
    failed = [0] * callers
    session, began = _session, list[float]()
    # All begin at one time: a thread that gets a core late has waited since then.
    start = threading.Barrier(callers + 1, lambda: began.append(perf_counter()))

    def call(number: int) -> None:
        mine = ended[number]
        start.wait()
        end_s = begin_s = began[0]
        while not mine or end_s - begin_s < seconds:
            before_s = end_s
            try:
                session.run(None, feeds)
            except Exception:  # ONNX Runtime's own have no common base
                failed[number] += 1
            end_s = perf_counter()
            mine.append(end_s - before_s)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    for thread in threads:
        thread.start()
    cpu_s, begin_s = process_time(), perf_counter()
    start.wait()
    for thread in threads:
        thread.join()
    duration_s = perf_counter() - begin_s
    return Trace(
        generator="threads",
        latencies_s=np.concatenate(ended),
        duration_s=duration_s,
        num_errors=sum(failed),
        busy=(process_time() - cpu_s) / duration_s,
    )


class InProcessLoad:
    """Runs a model in a process without a server; each caller is a thread."""

    def __init__(self, file: Path, workload: Workload, cores: Sequence[int]) -> None:
        """Start the process, and run the model once.

        Args:
            file: the ONNX file.
            workload: the rows of the calls.
            cores: where it may run.
        """
        self._workload = workload
        context = multiprocessing.get_context("spawn")
        self._pool = ProcessPoolExecutor(1, context, _begin, (file.absolute(), list(cores)))
        self.pid: int = self._pool.submit(_pid).result()
        self._pool.submit(_run, workload.feeds(1), 1, 0.0).result()

    def closed(self, demand: Demand) -> Trace:
        """Run batches on a thread for each caller; there are no connections or headers."""
        feeds = dict(self._workload.feeds(demand.batch))
        return self._pool.submit(_run, feeds, demand.callers, demand.seconds).result()

    def open(self, offsets_s: Seconds, batch: int, timeout_s: float = math.inf) -> Trace:
        """Refuse: there is nothing that arrives at a time of its own."""
        raise OSError("runs in process have no open loop")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._pool.shutdown()
