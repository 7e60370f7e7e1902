"""What processes use: memory, open files, processor time, and how long they wait for cores."""

import math
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from serving.system.cores import CGROUP, memory_limit

_PROC, _CPUINFO, _VMSTAT = Path("/proc/self"), Path("/proc/cpuinfo"), Path("/proc/vmstat")
_CPU_TEXT = 6 << 10
"""Characters of /proc/cpuinfo that are about the first processor at least."""
VIRTUAL, RESIDENT, SHARED, DATA = 0, 1, 2, 5
"""Sizes in /proc/self/statm."""


class Usage(NamedTuple):
    """Memory and file descriptors of one or more processes; all zero without /proc."""

    resident_bytes: int = 0
    virtual_bytes: int = 0
    num_files: int = 0
    """Open file descriptors, sockets included."""
    max_files: int = 0
    """The limit of open file descriptors."""

    @classmethod
    def now(cls) -> "Usage":
        """Read the usage of this process."""
        try:
            num_files = len(os.listdir(_PROC / "fd")) - 1  # without the one of this listing
        except OSError:
            return cls()
        import resource  # Windows has none

        max_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls(memory(RESIDENT), memory(VIRTUAL), num_files, max_files)


def processor() -> str:
    """Return the first processor's name and what it is able to do; "" without /proc."""
    try:
        with open(_CPUINFO, encoding="utf-8", errors="replace") as file:
            lines = file.read(_CPU_TEXT).splitlines()
    except OSError:
        return ""
    # "Features" on ARM.
    wanted = ("model name", "flags", "Features")
    return "\n".join(dict.fromkeys(each for each in lines[:-1] if each.startswith(wanted)))


def memory(field: int) -> int:
    """Return a size of this process in bytes; 0 without /proc.

    Args:
        field: VIRTUAL, RESIDENT, SHARED or DATA.
    """
    try:
        pages = (_PROC / "statm").read_text("ascii").split()
    except OSError:
        return 0
    return int(pages[field]) * os.sysconf("SC_PAGE_SIZE")


def free_bytes() -> float:
    """Return how much this process may still allocate; inf where nothing limits it."""
    try:
        import resource
    except ImportError:  # Windows has none
        return math.inf
    limit, _ = resource.getrlimit(resource.RLIMIT_DATA)
    return math.inf if limit == resource.RLIM_INFINITY else limit - memory(DATA)


def available_bytes() -> int:
    """Return how much memory another process could take; 0 if it is not known."""
    available = 0
    with suppress(OSError, ValueError, IndexError):  # no Linux
        for line in Path("/proc/meminfo").read_text("ascii").splitlines():
            if line.startswith("MemAvailable:"):
                available = int(line.split()[1]) << 10
    return min(available, memory_limit())


def num_killed_for_memory(cgroup: Path = CGROUP, vmstat: Path = _VMSTAT) -> int:
    """Return how many processes the kernel has ended for want of memory; 0 if it is not known.

    Args:
        cgroup: the root of the control groups' files: a container counts its own.
        vmstat: where the machine counts all.
    """
    for path in (cgroup / "memory.events", vmstat):
        with suppress(OSError, ValueError):
            facts = dict(line.split() for line in path.read_text("ascii").splitlines())
            return int(facts.get("oom_kill", 0))
    return 0


class Activity(NamedTuple):
    """A process's activity at one moment."""

    cpu_s: float = 0.0
    """Its processor time."""
    is_waiting_for_machine: bool = True
    """Whether a thread waits for a core or for a disk, or computes; the default without /proc."""

    @classmethod
    def of(cls, pid: int) -> "Activity":
        """Look at a process."""
        try:
            threads = [*Path(f"/proc/{pid}/task").iterdir()]
            ticks = sum(map(int, _stat(Path(f"/proc/{pid}/stat"))[11:13]))
        except OSError:  # it has ended
            return cls()
        states = map(_state, threads)
        return cls(ticks / os.sysconf("SC_CLK_TCK"), any(state in "RD" for state in states))


def _state(thread: Path) -> str:
    """Return a thread's state; Z, as of what waits for nothing, if it has ended meanwhile."""
    with suppress(OSError):
        return _stat(thread / "stat")[0]
    return "Z"


def _stat(path: Path) -> list[str]:
    """Return the fields of a stat file from the state on: the command before may hold blanks."""
    return path.read_text("utf-8", "replace").rpartition(")")[2].split()


def waited_for_cores_s() -> float:
    """Return how long threads of this process were ready to run and had no core, in seconds.

    The sum over its living threads, from /proc/PID/task/TID/schedstat; 0 where there is none.
    """
    waited_ns = 0
    for path in (_PROC / "task").glob("*/schedstat"):
        with suppress(OSError):  # the thread has ended
            waited_ns += int(path.read_text("ascii").split()[1])
    return waited_ns / 1e9


def start_time_s() -> float:
    """Return when this process started, in seconds since 1970; 0 without /proc."""
    try:
        start_ticks = int(_stat(_PROC / "stat")[19])
    except OSError:
        return 0.0
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s
