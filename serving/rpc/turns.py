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
    """A woken thread gets the core at once from one with a longer slice, from Linux 6.12 on; 0 is
    the kernel's own, 1 to 3 ms by the number of cores. Ignored before."""


_FEWEST_CALLS = (0, 3, 16)
"""How many calls come together where each manner is used."""
_MANNERS = (_Manner(False, 100_000), _Manner(True, 100_000), _Manner(True, 0))
"""In calls/s by h2load, all on one core, and beside a busy program on that core, in thousands:

one caller    4.5  4.2  4.3    1.51  0.27  0.26
2 callers     5.9  6.8  7.1    2.76  0.77  0.52
8 callers      20   26   27      12    14    11
64 callers     52   54   55      33    35    27
"""


class Turns:
    """Chooses the manner by how many calls come together; for the thread that receives them.

    Nothing depends on it: what a sandbox forbids is left as it is, and so is a thread whose policy
    somebody chose.
    """

    def __init__(self) -> None:
        """Begin with the manner for a lone call."""
        self._io_threads = _io_threads() if _SET_ATTRIBUTES is not None else []
        self._io_policy = os.SCHED_OTHER if self._io_threads else 0
        self._manner: _Manner | None = None
        self.expect(1)

    def expect(self, num_calls: int) -> None:
        """Prepare for as many calls at once as came just now."""
        manner = _MANNERS[bisect(_FEWEST_CALLS, num_calls) - 1]
        if manner is self._manner or not self._io_threads:
            return
        self._manner = manner
        policy = os.SCHED_BATCH if manner.is_patient else os.SCHED_OTHER
        for thread in self._io_threads:
            _schedule(thread, self._io_policy, policy, manner.slice_ns)
        self._io_policy = policy
        _schedule(0, os.SCHED_OTHER, os.SCHED_OTHER, manner.slice_ns)


def _schedule(thread: int, policy_before: int, policy: int, slice_ns: int) -> None:
    with suppress(OSError):  # it has ended, or a sandbox forbids it
        if os.sched_getscheduler(thread) != policy_before:
            return  # somebody chose another
        nice = os.getpriority(os.PRIO_PROCESS, thread)
        attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, policy, 0, nice, 0, slice_ns, 0, 0)
        _syscall(_SET_ATTRIBUTES, thread, attributes, 0)


def _io_threads() -> list[int]:
    """Find the I/O threads of this process."""
    threads = []
    with suppress(OSError):  # no /proc here
        for task in Path("/proc/self/task").iterdir():
            with suppress(OSError):  # it has ended meanwhile
                if (task / "comm").read_text().strip() == _IO_THREAD:
                    threads.append(int(task.name))
    return threads
