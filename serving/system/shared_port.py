"""A port that several workers serve: its socket, and how many connections each of them has."""

import errno
import mmap
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from typing import Any, NamedTuple

from serving.system.addresses import cannot_listen
from serving.system.listening import BACKLOG

_TAKEN_S = 1.0
"""How long to wait for a taken port: workers of a killed supervisor are about to end."""
_AWAY = 1 << 62
"""In place of the connections of a worker that takes none."""


class Share:
    """One worker's part of the connections to a port that several workers serve.

    All write how many they have into memory that they share, so that those who have more leave new
    ones to the others. The kernel, which draws one of several sockets (SO_REUSEPORT), gives three
    of four callers to the same one of two workers in half of the cases.
    """

    def __init__(self, sock: socket.socket, numbers: memoryview, place: int) -> None:
        """Take the socket, and the numbers of connections, of which `place` is this worker's."""
        self.socket = sock
        self._numbers = numbers
        self._place = place

    def note(self, number: int = _AWAY) -> None:
        """Tell the others how many this worker has; without a number, that it takes none."""
        self._numbers[self._place] = number

    def listen(self) -> None:
        """Listen again: the supervisor knew of no ready worker yet; see `refuse_callers`."""
        self.socket.listen(BACKLOG)

    @property
    def is_small(self) -> bool:
        """Whether no other worker has clearly fewer."""
        least = min(self._numbers)
        return self._numbers[self._place] <= least + least // 8


class SharedPort(NamedTuple):
    """A port of several workers: its socket, and a file in memory with their connections."""

    socket: socket.socket
    file: int

    def share(self, place: int) -> Share:
        """Return the part of the worker at a place."""
        return Share(self.socket, memoryview(mmap.mmap(self.file, 0)).cast("q"), place)


@contextmanager
def reserved_port(host: str, port: int, number: int = 1) -> Iterator[SharedPort]:
    """Reserve a port for the processes that inherit its socket; this one does not listen.

    So the port is known before a worker listens, and stays ours while no worker is alive. gRPC's
    core takes no socket: it binds its own to the port, with SO_REUSEPORT.

    Args:
        host: the address to bind.
        port: the TCP port; 0 lets the kernel choose.
        number: of the processes.

    Raises:
        ConfigurationError: the address can't be bound, or the port is taken and stays so for a
            second.
    """
    with ExitStack() as stack:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            _wait_until_free(family, address)

            def bound(*options: int) -> socket.socket:
                sock = stack.enter_context(socket.socket(family, kind, protocol))
                sock.setblocking(False)
                for option in options:
                    sock.setsockopt(socket.SOL_SOCKET, option, 1)
                sock.bind(address)
                return sock

            # Without SO_REUSEADDR, this one keeps other servers' probes away while none listens.
            # It also keeps the number: `refuse_callers` would free a port that the kernel chose.
            try:
                keeper = bound(socket.SO_REUSEPORT)
            except OSError:  # connections in TIME_WAIT of a server that had no workers
                keeper = bound(socket.SO_REUSEPORT, socket.SO_REUSEADDR)
            address = keeper.getsockname()
            # SO_REUSEADDR: connections inherit it, and one in TIME_WAIT without it would block
            # the next start's probe for a minute.
            options = socket.SO_REUSEPORT, socket.SO_REUSEADDR
            shared = SharedPort(bound(*options), os.memfd_create("connections"))
            stack.callback(os.close, shared.file)
            os.truncate(shared.file, number * 8)
            for place in range(number):
                shared.share(place).note()
        except (OSError, ValueError) as err:
            raise cannot_listen(host, port, err) from err
        yield shared


def _wait_until_free(family: int, address: Any) -> None:
    """Return once no server listens on an address; a port just closed is free."""
    end_s = time.monotonic() + _TAKEN_S
    while True:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(address)
            except OSError as err:
                if err.errno != errno.EADDRINUSE or time.monotonic() > end_s:
                    raise
            else:
                return
        time.sleep(0.05)


def refuse_callers(listener: socket.socket) -> None:
    """Have the kernel refuse callers until a process listens again; the port stays ours."""
    with suppress(OSError):  # nobody has listened on it
        listener.shutdown(socket.SHUT_RD)
