"""Room for models that load beside one another: four at a time, and as the memory allows."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from serving.system.usage import available_bytes

_MOST_LOADS = 4
"""Models that load beside one another."""
_LONG_S, _BYTES_S = 5.0, 50e6
"""A load that takes longer than this, and than its files' bytes at this rate, may hang: it does not
count any more. Sessions of 100 MB are built at 100 MB/s and more on a busy core."""
_LOOK_S = 0.5
"""How often those that wait look at the memory."""
_COPIES = 3
"""How many times a model's files its loading may take: the bytes, the graph, the session."""


class LoadingRoom:
    """Lets loads begin as long as there is room; one alone may always begin."""

    def __init__(
        self,
        most: int = _MOST_LOADS,
        free_bytes: Callable[[], int] = available_bytes,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Start empty.

        Args:
            most: loads at a time.
            free_bytes: returns how much memory could be taken now; 0 if that is not known.
            clock: returns monotonic seconds.
        """
        self._most, self._free_bytes, self._clock = most, free_bytes, clock
        self._changed = threading.Condition()
        self._loads: dict[object, tuple[int, float]] = {}
        """What each load that goes on may take, in bytes, and from when on it may hang."""

    @contextmanager
    def of(self, file_bytes: int) -> Iterator[None]:
        """Wait until a model may load whose files have so many bytes; it loads meanwhile.

        What others have taken is not free any more and still counts as theirs: rather twice than
        not at all.
        """
        load, needed = object(), _COPIES * file_bytes
        with self._changed:
            while not self.has_room(needed):
                self._changed.wait(_LOOK_S)
            self._loads[load] = needed, self._clock() + _LONG_S + file_bytes / _BYTES_S
        try:
            yield
        finally:
            with self._changed:
                del self._loads[load]
                self._changed.notify_all()

    def has_room(self, needed: int) -> bool:
        """Return whether a load may begin that takes so many bytes."""
        now_s = self._clock()
        taken = [num_bytes for num_bytes, until_s in self._loads.values() if now_s < until_s]
        if len(taken) >= self._most:
            return False
        return not taken or sum(taken) + needed <= (self._free_bytes() or math.inf)
