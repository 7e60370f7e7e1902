"""What every connection that sends calls can do, and how each is opened."""

import socket
from collections.abc import Sequence
from typing import Protocol

OK, DEADLINE_EXCEEDED, RESOURCE_EXHAUSTED, UNKNOWN = 0, 4, 8, -1
"""Statuses of gRPC, and of calls that ended without one."""
_CONNECT_TIMEOUT_S = 10.0
READ_BYTES = 256 << 10
"""The most that a connection reads at once."""
Ended = dict[int, list[float]]
"""By status: the latencies in seconds of the calls that ended with it."""


def connect(address: str) -> socket.socket:
    """Connect to host:port, with Nagle's algorithm off; reads wait 10 s at most.

    Raises:
        OSError: nobody answers there.
    """
    host, _, port = address.rpartition(":")
    found = socket.create_connection((host.strip("[]"), int(port)), _CONNECT_TIMEOUT_S)
    found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return found


class CallerConnection(Protocol):
    """A connection to a server, and its calls."""

    num_open: int
    """Calls in flight."""

    @property
    def num_calls(self) -> int:
        """How many calls were sent."""

    @property
    def is_blocked(self) -> bool:
        """Whether the socket has not taken all that it was given."""

    @property
    def free_capacity(self) -> int:
        """How many calls can be sent now."""

    def send(self, start_s: Sequence[float]) -> None:
        """Send a call for each time that a latency counts from; at most `free_capacity`."""

    def fill(self, now_s: float) -> None:
        """Send as many calls as may be in flight."""

    def flush(self) -> None:
        """Send buffered bytes, as far as the socket allows."""

    def receive(self) -> None:
        """Take in the answers that have come.

        Raises:
            OSError: the connection was closed.
        """

    def give_up(self, before_s: float) -> None:
        """End the calls in flight that started before a time: their deadline is exceeded."""

    def close(self) -> None:
        """Close the connection."""

    def fileno(self) -> int:
        """Return the socket's number, for selectors."""
