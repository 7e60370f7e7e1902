"""A pipe by which children end with their parent, even if SIGKILL ends it.

The parent has the only end that writes, and never writes. Once it is closed, the kernel sends a
signal for the other end: also to a process that is stopped or hangs in native code, and to all of a
group at once. `PR_SET_PDEATHSIG` would follow the thread that forked, and reach one process alone.
"""

import os
import select
from contextlib import suppress
from fcntl import F_GETFL, F_SETFL, F_SETOWN, F_SETSIG, fcntl

_open: "set[Lifeline]" = set()


class Lifeline:
    """The parent's end."""

    def __init__(self) -> None:
        """Open a pipe; the child closes neither end, the parent `reader` once it has started."""
        self.reader, self._writer = os.pipe()
        _open.add(self)

    def close(self) -> None:
        """Let the child end; may be called again."""
        with suppress(KeyError):
            _open.remove(self)
            os.close(self._writer)


def _close_all() -> None:
    for each in [*_open]:
        each.close()


os.register_at_fork(after_in_child=_close_all)  # a fork that lives on would keep children alive


def end_with(reader: int, number: int, owner: int) -> None:
    """Have a signal sent once the lifeline is closed.

    Args:
        reader: the lifeline's end here.
        number: the signal's.
        owner: who gets it: a process, or a group as its negative id.
    """
    os.set_inheritable(reader, False)
    with suppress(OSError):  # a sandbox may have no signals of files
        fcntl(reader, F_SETOWN, owner)
        fcntl(reader, F_SETSIG, number)
        fcntl(reader, F_SETFL, fcntl(reader, F_GETFL) | os.O_ASYNC)
    poll = select.poll()
    poll.register(reader, 0)
    if poll.poll(0):  # it was closed before
        os.kill(owner, number)
