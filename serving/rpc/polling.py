"""Waits for calls awake where they come soon.

A core that sleeps takes tens of microseconds to wake up, and finds its caches cold: with one caller
that is a good part of each call. Linux polls before it halts for the same reason (haltpoll,
https://docs.kernel.org/virt/guest-halt-polling.html), but here two threads take turns on a call.
"""

import math
import time
from collections.abc import Callable
from typing import Any

from serving.rpc.turns import yield_core

LONGEST_S = 0.0002
"""The longest wait awake, as haltpoll's."""
_LONGEST_PASS_S = 0.001
"""A pass that took longer was interrupted by another program on this core. Who polls beside one
uses up its share of the core, and when a call comes it waits for the end of the other's slice."""
_PAUSE_S = 1.0
"""How long it then sleeps for every call."""

Receive = Callable[[int | None], list[Any] | None]
"""Takes what has come; with nothing there, waits so many milliseconds, or None for any time."""


class Polling:
    """Chooses between waiting awake and asleep; for the thread that waits."""

    def __init__(self, longest_s: float, clock: Callable[[], float] = time.perf_counter) -> None:
        """Begin asleep; with `longest_s` 0 it stays so. `clock` gives seconds."""
        self._longest_s = longest_s
        self._clock = clock
        self._last_wait_s = math.inf
        self._awake_from_s = -math.inf

    def wait(self, receive: Receive) -> list[Any] | None:
        """Return what `receive` gives as soon as that is anything, or None: it was closed."""
        begin_s = self._clock()
        events: list[Any] | None = []
        if self._last_wait_s < self._longest_s and begin_s >= self._awake_from_s:
            events = self._poll(receive, begin_s)
        if events == []:
            events = receive(None)
        self._last_wait_s = self._clock() - begin_s
        return events

    def _poll(self, receive: Receive, begin_s: float) -> list[Any] | None:
        now_s = begin_s
        while (events := receive(0)) == [] and now_s - begin_s < self._longest_s:
            yield_core()
            before_s, now_s = now_s, self._clock()
            if now_s - before_s > _LONGEST_PASS_S:
                self._awake_from_s = now_s + _PAUSE_S
        return events
