"""The server's interface to its machine, which a simulated one can replace."""

import selectors
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from serving.system.listener import listen
from serving.system.runners import Runners, Threads


@dataclass(frozen=True, kw_only=True, slots=True)
class Host:
    """Clock, network and chance: by default those of this machine."""

    clock: Callable[[], float] = time.monotonic
    """Returns seconds that never go back."""
    selector: Callable[[], selectors.BaseSelector] = selectors.DefaultSelector
    """Makes the selector."""
    listen: Callable[[str, int], socket.socket] = listen
    """Listens on a host and a port; see `listener.listen`."""
    socketpair: Callable[[], tuple[socket.socket, socket.socket]] = socket.socketpair
    """Makes the sockets by which other threads wake the server's."""
    random: Random = field(default_factory=Random)
    runners: Callable[[int], Runners] = Threads
    """Makes the runners of long work: at most this many at once."""
