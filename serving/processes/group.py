"""The memory of a process with all that it has forked: its group."""

import os
from pathlib import Path

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_GROUP = 2
"""The place of the group among a process's facts, behind its name."""


class ProcessGroup:
    """A group by its leader's id; for one thread at a time."""

    def __init__(self, leader: int) -> None:
        self._leader = leader
        self._groups: dict[int, int] = {}
        """The group of each process of this machine, read once: they hardly ever change."""

    def memory_bytes(self) -> int:
        """Return the resident memory; pages that its processes share count once."""
        members = self._members()
        if members == [self._leader]:
            return _resident_bytes(self._leader)
        return sum(map(_proportional_bytes, members))

    def _members(self) -> list[int]:
        pids = [int(name) for name in os.listdir("/proc") if name.isdigit()]
        known = self._groups
        # Those of the kernel's own are 0.
        self._groups = {pid: known[pid] if pid in known else _group_of(pid) for pid in pids}
        return [pid for pid, group in self._groups.items() if group == self._leader]


def _group_of(pid: int) -> int:
    try:
        facts = Path(f"/proc/{pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return int(facts[_GROUP])
    except (OSError, IndexError):  # it has ended
        return 0


def _resident_bytes(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/statm").read_text("ascii").split()[1]) * _PAGE_BYTES
    except (OSError, IndexError):
        return 0


def _proportional_bytes(pid: int) -> int:
    """Return a process's memory, with its part of what it shares since a fork."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("Pss:"))
    except (OSError, StopIteration):
        return _resident_bytes(pid)
