"""The server's interface to its machine, which a simulated one can replace."""

import queue
import selectors
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from random import Random
from typing import Protocol

from serving.system.address import listen

Task = Callable[[], None]


class Runners(Protocol):
    """Does work elsewhere than its owner, which takes the results."""

    def put(self, work: Callable[[], Task], post: Callable[[Task], None]) -> None:
        """Have something done.

        Args:
            work: called on another thread; returns a function that takes the result.
            post: has that function called on the owner's thread.

        Raises:
            RuntimeError: there is no thread, and the system has no more.
        """

    def close(self) -> None:
        """End the threads once they are idle."""


class Threads:
    """Daemon threads, started as they are needed; used by one thread only."""

    def __init__(self, number: int) -> None:
        """Start none of up to `number` threads yet."""
        self._number = number
        self._num_started = 0
        self._num_running = 0
        self._todo: queue.SimpleQueue[tuple[Callable[[], Task], Callable[[Task], None]] | None]
        self._todo = queue.SimpleQueue()

    def put(self, work: Callable[[], Task], post: Callable[[Task], None]) -> None:
        """See `Runners`."""
        if self._num_started < min(self._number, self._num_running + 1):
            self._start()
        self._num_running += 1
        self._todo.put((work, post))

    def _start(self) -> None:
        try:
            threading.Thread(target=self._work, name="runner", daemon=True).start()
        except RuntimeError:  # the system has no more threads: fewer will do
            if not self._num_started:
                raise
        else:
            self._num_started += 1

    def _work(self) -> None:
        while (task := self._todo.get()) is not None:
            work, post = task
            post(partial(self._end, work()))

    def _end(self, take: Task) -> None:
        self._num_running -= 1
        take()

    def close(self) -> None:
        """See `Runners`."""
        for _ in range(self._num_started):
            self._todo.put(None)
        self._num_started = 0


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
