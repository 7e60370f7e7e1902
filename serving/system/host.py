"""The server's interface to its machine: clock, network, chance. A simulated one can replace it."""

import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random
from typing import Any

from serving.system.batch_threads import Runners, Threads
from serving.system.listening import listen

Run = Callable[[Any], Any]


def _unguarded(label: tuple[str, str], run: Run) -> Run:
    """Return the run as it is."""
    return run


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """Clock, network and chance: by default those of this machine."""

    clock: Callable[[], float] = time.monotonic
    """Returns seconds that never go back."""
    selector: Callable[[], selectors.BaseSelector] = selectors.DefaultSelector
    """Makes the selector."""
    listen: Callable[[str, int], socket.socket] = listen
    """Listens on a host and a port; see `listen`."""
    socketpair: Callable[[], tuple[socket.socket, socket.socket]] = socket.socketpair
    """Makes the sockets by which other threads wake the server's."""
    random: Random = field(default_factory=Random)
    checks_random: Random = field(default_factory=Random)
    """Draws the calls of batches that run alone once more."""
    runners: Callable[[int], Runners] = Threads
    """Makes the runners of long work: at most this many at once."""
    guard: Callable[[tuple[str, str], Run], Run] = _unguarded
    """Wraps the run of a model, named by its name and version, so that a crash is known as its."""
