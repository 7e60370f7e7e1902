"""Calls of the C library: how much free memory stays, and an end with the parent process."""

import signal
from contextlib import suppress
from functools import cache
from typing import Any

_PR_SET_PDEATHSIG = 1
FREE_BYTES = 16 << 20
"""Free memory that the process keeps; after so much more was freed, it goes back to the kernel."""
_MALLOC_OPTIONS = {-1: FREE_BYTES, -3: 4 << 20}
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD (mallopt(3))."""


def end_with_parent() -> None:
    """Have the kernel kill this process when its parent ends, where it can (prctl(2)).

    Even a stopped process, or one that hangs in native code, ends then and frees its ports. The
    parent is the thread that forked.
    """
    with suppress(OSError, AttributeError):
        _libc().prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def limit_free_memory() -> None:
    """Set how much free memory the process keeps, with glibc.

    By itself it raises both limits with the blocks that are freed, up to 64 and 32 MiB: then it
    kept 0.6 GiB of forms.
    """
    with suppress(OSError, AttributeError):
        for option, num_bytes in _MALLOC_OPTIONS.items():
            _libc().mallopt(option, num_bytes)


def trim_memory() -> None:
    """Give free pages back to the kernel, with glibc."""
    with suppress(OSError, AttributeError):
        _libc().malloc_trim(0)


@cache
def _libc() -> Any:
    import ctypes  # some milliseconds, which most programs need not spend

    return ctypes.CDLL(None)
