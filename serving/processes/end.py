"""How a process has ended: the words that all log lines and errors have for it.

exit code 3                              by itself
SIGSEGV                                  by a signal; `signal 35` for one without a name
SIGKILL: out of memory                   by the kernel, for want of memory
it closed its connection to the server   it can't be asked any more
takes more than 60 s                     out of time: ended here
takes more than 2048 MiB of memory       out of memory: ended here
can't be started: REASON                 it never was
"""

import signal
from typing import NamedTuple

LOST = 74
"""The exit code of a process whose channel is closed."""
_LOST = "it closed its connection to the server: expected that it closes only what it opened"


class End(NamedTuple):
    """The end of a process."""

    code: int
    """Its exit code, negative for a signal."""
    lacked_memory: bool = False
    """Whether the kernel has ended processes for want of memory while it lived."""

    def __str__(self) -> str:
        if self.code == LOST:
            return _LOST
        if self.code >= 0:
            return f"exit code {self.code}"
        try:
            name = signal.Signals(-self.code).name
        except ValueError:
            name = f"signal {-self.code}"
        is_killed = self.code == -signal.SIGKILL
        return f"{name}: out of memory" if is_killed and self.lacked_memory else name


def out_of_time(most_s: float) -> str:
    """Say why a process was ended that has worked for too long."""
    return f"takes more than {most_s:g} s"


def out_of_memory(most_bytes: int) -> str:
    """Say why a process was ended that has too much memory."""
    return f"takes more than {most_bytes >> 20} MiB of memory"


def not_started(err: OSError) -> str:
    """Say why there is no process."""
    return f"can't be started: {err.strerror or err}"
