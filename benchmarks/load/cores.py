"""Which cores measure and which are measured, and processes bound to them."""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager


def split_cores() -> tuple[list[int], list[int]]:
    """Split the usable cores: the first half for the targets, the rest for the generator.

    Returns:
        Two lists; both name the same core where there is only one.
    """
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    return cores[:half], cores[half:] or cores


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Bind this thread, and the processes that it starts, to cores while the context lasts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def worker(cores: Sequence[int]) -> ProcessPoolExecutor:
    """Return an executor of one process on its own cores, which starts with the first job.

    The process ignores Ctrl-C, which is for the process that started it.
    """
    return ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(cores,)
    )


def _begin(cores: Sequence[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.sched_setaffinity(0, cores)
