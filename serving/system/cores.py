"""The cores and the memory that a process may use, also in a container."""

import math
import os
from contextlib import suppress
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where a container sees its own limits."""


def memory_limit(cgroup: Path = CGROUP) -> int:
    """Return how many bytes of memory this process may use: the machine's, or a container's.

    Args:
        cgroup: the root of the control groups' files.
    """
    limit = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for name in ("memory.max", "memory/memory.limit_in_bytes"):
        with suppress(OSError, ValueError):  # not this version, or "max"
            limit = min(limit, int((cgroup / name).read_text("ascii")))
    return limit


def usable_cores(cgroup: Path = CGROUP) -> int:
    """Count the cores that this process may keep busy, at least 1.

    A container's CPU quota does not show in the affinity: with `--cpus 2` on a host of 64 cores all
    64 are allowed, and 64 busy threads are throttled for most of each period. Part of a core counts
    as one.

    Args:
        cgroup: the root of the control groups' files.
    """
    allowed = _allowed_cores()
    quota = _quota(cgroup)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def may_poll(num_processes: int, cgroup: Path = CGROUP) -> bool:
    """Return whether a process may poll for work instead of sleeping.

    Not under a CPU quota, which polling would use up, nor where processes share cores.

    Args:
        num_processes: how many processes like this share the cores.
        cgroup: the root of the control groups' files.
    """
    return _quota(cgroup) is None and num_processes <= _allowed_cores()


def _allowed_cores() -> int:
    """Count the cores in the affinity, which only Linux has; elsewhere all cores."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(cgroup: Path) -> float | None:
    """Return the CPU quota in cores; None if there is none or it can't be read.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html (cpu.max), and for version 1
    https://docs.kernel.org/scheduler/sched-bwc.html.
    """
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            text = " ".join((cgroup / name).read_text("ascii") for name in names)
            quota_us, period_us = map(int, text.split())
        except (OSError, ValueError):  # not this version, or "max"
            continue
        if quota_us > 0 and period_us > 0:  # version 1 says -1 for none
            return quota_us / period_us
    return None
