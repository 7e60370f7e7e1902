"""A worker's crash record: the model that each thread runs, in memory that outlives the process.

    bytes      content, written by
    0..1023    64 slots of two numbers, the worker's threads: the thread, and the model that it runs
    1024..     the trace of a fatal signal, Python's `faulthandler`: it names the thread

The supervisor made the file, and reads it once the worker has ended.
"""

import faulthandler
import mmap
import os
import re
import signal
from _thread import get_ident
from collections.abc import Callable
from hashlib import blake2b
from typing import Any

CRASHES = frozenset({
    signal.SIGFPE, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL,
})  # fmt: skip
"""Signals by which a process ends through its own instructions. SIGKILL is somebody else's."""
_NUM_SLOTS = 64
_SLOTS_BYTES = _NUM_SLOTS * 16
_MAX_TRACE_BYTES = 1 << 20
_THREAD = re.compile(rb"Current thread 0x([0-9a-f]+)")

_Run = Callable[[Any], Any]


def number_of(label: tuple[str, str]) -> int:
    """Return the number by which records name a version of a model: a digest, never 0."""
    digest = blake2b("\0".join(label).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True) or 1


class CrashRecord:
    """One worker's record, on either side."""

    def __init__(self, file: int | None = None) -> None:
        """Open the record in a file, or make one."""
        if file is None:
            file = os.memfd_create("crash record")
            os.truncate(file, _SLOTS_BYTES)
            os.lseek(file, _SLOTS_BYTES, os.SEEK_SET)  # the processes share the position
        self.file = file
        self._slots = memoryview(mmap.mmap(file, _SLOTS_BYTES)).cast("q")
        self._free = [*range(0, 2 * _NUM_SLOTS, 2)]

    def trace_crashes(self) -> None:
        """Have fatal signals of this process traced."""
        faulthandler.enable(self.file)

    def guarded(self, label: tuple[str, str], run: _Run) -> _Run:
        """Return a function that notes, while it runs, which model this thread is in.

        It takes some 0.2 µs more. A thread that finds no slot free notes nothing.
        """
        number, slots, free = number_of(label), self._slots, self._free

        def guarded_run(feeds: Any) -> Any:
            try:
                at = free.pop()  # of a list: atomic
            except IndexError:
                return run(feeds)
            slots[at] = get_ident()
            slots[at + 1] = number
            try:
                return run(feeds)
            finally:
                slots[at + 1] = 0
                free.append(at)

        return guarded_run

    def culprits(self) -> frozenset[int]:
        """Return the numbers of the models whose run ended the process.

        That is the model of the thread that got the signal. Where the trace does not name the
        thread, it is each model that ran.
        """
        pairs = zip(self._slots[::2].tolist(), self._slots[1::2].tolist(), strict=True)
        running = [(thread, number) for thread, number in pairs if number]
        found = _THREAD.search(os.pread(self.file, _MAX_TRACE_BYTES, _SLOTS_BYTES))
        if found is not None:
            thread = int(found[1], 16)
            running = [each for each in running if each[0] == thread]
        return frozenset(number for _, number in running)

    def close(self) -> None:
        """Close the file; the supervisor's side alone."""
        os.close(self.file)
