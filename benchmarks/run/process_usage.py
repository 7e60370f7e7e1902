"""Processor time and memory of a process and its descendants, from /proc."""

import os
from collections.abc import Iterator
from pathlib import Path


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
