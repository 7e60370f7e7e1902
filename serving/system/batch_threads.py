"""Threads that run batches beside the thread that reads and answers calls."""

import os
import queue
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Protocol

_NICE = 5
"""How far runners stand back behind the thread that reads and answers calls. Where both share a
core, callers of another model wait for a run's end else: p90 0.15 ms with it, 0.75 without."""
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
        self._number = number
        self._num_started = 0
        self._num_running = 0
        self._todo: queue.SimpleQueue[tuple[Callable[[], Task], Callable[[Task], None]] | None]
        self._todo = queue.SimpleQueue()

    def put(self, work: Callable[[], Task], post: Callable[[Task], None]) -> None:
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
        if sys.platform == "linux":  # elsewhere threads have no niceness of their own
            number = threading.get_native_id()
            with suppress(OSError):  # a sandbox may forbid it
                os.setpriority(os.PRIO_PROCESS, number, os.getpriority(os.PRIO_PROCESS, 0) + _NICE)
        while (task := self._todo.get()) is not None:
            work, post = task
            post(partial(self._end, work()))
            del task, work, post  # else it has their calls' messages until there is more to do

    def _end(self, take: Task) -> None:
        self._num_running -= 1
        take()

    def close(self) -> None:
        for _ in range(self._num_started):
            self._todo.put(None)
        self._num_started = 0
