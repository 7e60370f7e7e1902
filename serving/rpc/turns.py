"""How the native transport's I/O thread and the thread that runs the batches share a core.

Left to itself the kernel gets it wrong in two ways. With many callers the I/O thread interrupts a
batch for each answer and each arrival, and sends and reads them one at a time. With few callers,
beside a busy program, each of the two waits for the end of that program's slice when it is woken: a
tick of the kernel's clock, 4 ms, for each call.
"""

import ctypes
import os
import platform
import struct
from bisect import bisect
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

yield_core = ctypes.CDLL(None).sched_yield
"""Lets the I/O thread send what it has before this thread goes on. `os.sched_yield` keeps the
interpreter's lock while others run, before Python 3.12."""

_IO_THREAD = "grpc-native-io"
_SET_ATTRIBUTES = {"Linux x86_64": 314, "Linux aarch64": 274}.get(
    f"{platform.system()} {platform.machine()}"
)
"""The number of sched_setattr(2), which C libraries before glibc 2.41 don't have."""
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
"""struct sched_attr: size, policy, flags, nice, priority, slice (ns), deadline, period."""
_syscall = ctypes.PyDLL(None).syscall  # a microsecond, not worth letting go of the interpreter


class _Manner(NamedTuple):
    """How the two threads are scheduled."""

    is_patient: bool
    """Whether the I/O thread waits for its turn when it is woken: SCHED_BATCH, see sched(7)."""
    slice_ns: int
    """A woken thread gets the core at once from one with a longer slice, from Linux 6.12 on, where
    the kernel's own is 3 ms; 0 leaves it at that. Ignored before."""


_FEWEST_CALLS = (0, 3, 16)
"""How many calls come together where each manner is used."""
_MANNERS = (_Manner(False, 100_000), _Manner(True, 100_000), _Manner(True, 0))
"""In calls/s by h2load, all on one core, and beside a busy program on that core, in thousands:

one caller    4.5  4.2  4.3    1.51  0.27  0.26
8 callers      20   26   27      12    14    11
64 callers     52   54   55      33    35    27
"""


class Turns:
    """Chooses the manner by how many calls come together; for the thread that receives them."""

    def __init__(self) -> None:
        """Begin with the manner for a lone call; a policy that somebody chose for us is kept."""
        self._manner: _Manner | None = None
        is_free = _SET_ATTRIBUTES is not None and os.sched_getscheduler(0) == os.SCHED_OTHER
        self._io_threads = _io_threads() if is_free else []
        self._nice = os.getpriority(os.PRIO_PROCESS, 0)
        self.expect(1)

    def expect(self, num_calls: int) -> None:
        """Prepare for as many calls at once as came just now."""
        manner = _MANNERS[bisect(_FEWEST_CALLS, num_calls) - 1]
        if manner is self._manner or not self._io_threads:
            return
        self._manner = manner
        policy = os.SCHED_BATCH if manner.is_patient else os.SCHED_OTHER
        for thread in self._io_threads:
            self._set(thread, policy, manner.slice_ns)
        self._set(0, os.SCHED_OTHER, manner.slice_ns)

    def _set(self, thread: int, policy: int, slice_ns: int) -> None:
        attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, policy, 0, self._nice, 0, slice_ns, 0, 0)
        if _syscall(_SET_ATTRIBUTES, thread, attributes, 0):
            self._io_threads = []  # a sandbox forbids it


def _io_threads() -> list[int]:
    """Find the I/O threads of this process."""
    threads = []
    for task in Path("/proc/self/task").iterdir():
        with suppress(OSError):  # it has ended meanwhile
            if (task / "comm").read_text().strip() == _IO_THREAD:
                threads.append(int(task.name))
    return threads
