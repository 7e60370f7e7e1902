"""What the kernel knows of processes: processor time, memory, and which cores are whose."""

import multiprocessing
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path


def split_cores() -> tuple[list[int], list[int]]:
    """Share the usable cores out: the first half to what is measured, the rest to what asks.

    Returns:
        Two lists; both name the same core where there is only one.
    """
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    return cores[:half], cores[half:] or cores


def shared_cores() -> tuple[list[int], list[int]]:
    """Give all usable cores to both; see `split_cores`."""
    cores = sorted(os.sched_getaffinity(0))
    return cores, cores


def family(pid: int) -> Iterator[int]:
    """Yield a process and its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _read(task).split():
            yield from family(int(child))


def worker(cores: Sequence[int]) -> ProcessPoolExecutor:
    """Make a process on its own cores, which does one job after another; it starts at the first.

    Ctrl-C is left to the process that started it.
    """
    return ProcessPoolExecutor(
        1, multiprocessing.get_context("spawn"), initializer=_begin, initargs=(cores,)
    )


def _begin(cores: Sequence[int]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.sched_setaffinity(0, cores)


def cpu_s(pid: int) -> float:
    """Return the processor time of a process and its descendants so far, in steps of 10 ms."""
    return sum(_cpu_s(each) for each in family(pid))


def _cpu_s(pid: int) -> float:
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK") if fields else 0.0


def memory_bytes(pid: int) -> int:
    """Return what a process and its descendants hold; memory they share is counted once (PSS)."""
    return sum(_pss_bytes(each) for each in family(pid))


def _pss_bytes(pid: int) -> int:
    for line in _read(Path(f"/proc/{pid}/smaps_rollup")).splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _read(path: Path) -> str:
    """Read a file of a process, which may have ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


def on_cores(cores: Sequence[int]) -> "Affinity":
    """Bind this thread, and the processes it starts, while the returned context lasts."""
    return Affinity(cores)


class Affinity:
    """Binds the calling thread to cores, and gives it back what it had."""

    def __init__(self, cores: Sequence[int]) -> None:
        """See `on_cores`."""
        self._cores = cores

    def __enter__(self) -> None:
        self._before = os.sched_getaffinity(0)
        os.sched_setaffinity(0, self._cores)

    def __exit__(self, *exc_info: object) -> None:
        os.sched_setaffinity(0, self._before)
