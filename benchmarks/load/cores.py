"""Cores and processes: which measure and which are measured, and what they use, from /proc."""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path


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


def family(pid: int) -> Iterator[int]:
    """Yield a process and its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _read(task).split():
            yield from family(int(child))


def cpu_s(pid: int) -> float:
    """Return the processor time of a process and its descendants so far, in steps of 10 ms."""
    stats = (_read(Path(f"/proc/{each}/stat")).rpartition(")")[2].split() for each in family(pid))
    ticks = sum(int(ticks) for fields in stats for ticks in fields[11:13])  # user, system
    return ticks / os.sysconf("SC_CLK_TCK")


def memory_bytes(pid: int) -> int:
    """Return the memory of a process and its descendants; shared memory counts once (PSS)."""
    rollups = (_read(Path(f"/proc/{each}/smaps_rollup")).split() for each in family(pid))
    return sum(1024 * int(words[words.index("Pss:") + 1]) for words in rollups if words)


def _read(path: Path) -> str:
    """Read a file of a process; empty if the process has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""
