"""Memory, file descriptors and start time of this process, from /proc."""

import os
import time
from pathlib import Path
from typing import NamedTuple

_PROC = Path("/proc/self")


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
            pages = (_PROC / "statm").read_text("ascii").split()
            num_files = len(os.listdir(_PROC / "fd")) - 1  # without the one of this listing
        except OSError:
            return cls()
        import resource  # Windows has none

        page_bytes = resource.getpagesize()
        max_files, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        return cls(int(pages[1]) * page_bytes, int(pages[0]) * page_bytes, num_files, max_files)


def start_time_s() -> float:
    """Return when this process started, in seconds since 1970; 0 without /proc."""
    try:
        # The command, in parentheses, may hold blanks; the start is the 20th field behind it.
        fields = (_PROC / "stat").read_text("utf-8", "replace").rpartition(")")[2].split()
    except OSError:
        return 0.0
    age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return time.time() - age_s
