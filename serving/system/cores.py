"""How many cores this process may use, and how: its affinity, and its container's quota."""

import math
import os
from pathlib import Path

_CGROUP = Path("/sys/fs/cgroup")
"""Where a container sees its own limits."""


def usable_cores(cgroup: Path = _CGROUP) -> int:
    """Count the cores that this process may keep busy, at least 1.

    A container's share of CPU time isn't seen in the affinity: with `--cpus 2` on a host of 64,
    all 64 are allowed, and 64 busy threads are stopped for most of each period. Part of a core
    counts as one.

    Args:
        cgroup: the root of the control groups' files.
    """
    allowed = _allowed_cores()
    quota = _quota(cgroup)
    return allowed if quota is None else max(1, min(allowed, math.ceil(quota)))


def may_poll(num_processes: int, cgroup: Path = _CGROUP) -> bool:
    """Return whether a process may keep a core busy while it waits for work.

    Not under a quota, from which the waiting would be taken, nor where processes share cores.

    Args:
        num_processes: how many like this share the cores.
        cgroup: the root of the control groups' files.
    """
    return _quota(cgroup) is None and num_processes <= _allowed_cores()


def _allowed_cores() -> int:
    """Count the cores that this process may run on; only Linux knows of fewer than all."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _quota(cgroup: Path) -> float | None:
    """Return the quota in cores; None where there is none or it can't be read.

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
