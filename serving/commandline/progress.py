"""The progress of long work, on a terminal."""

import time
from typing import TextIO


class Bar:
    """A line at the foot of a terminal; elsewhere it writes nothing."""

    INTERVAL_S = 0.1

    def __init__(self, total: int, stream: TextIO | None) -> None:
        self._stream = stream if stream is not None and stream.isatty() and total > 1 else None
        self._total = total
        self._done = 0
        self._start = time.monotonic()
        self._next = self._start
        self._is_drawn = False

    def clear(self) -> None:
        """Remove the bar, so that a line can be printed."""
        if self._is_drawn:
            self._write("\r\x1b[K")
            self._is_drawn = False

    def advance(self, num: int = 1) -> None:
        """Count some pictures or rows; draw at most every INTERVAL_S."""
        self._done += num
        now = time.monotonic()
        if self._stream is None or now < self._next:
            return
        self._next = now + self.INTERVAL_S
        left_s = (now - self._start) / self._done * (self._total - self._done)
        filled = 30 * self._done // self._total
        self._write(
            f"\r[{'#' * filled}{'.' * (30 - filled)}] {self._done} of {self._total}, "
            f"{left_s:.0f} s left\x1b[K"
        )
        self._is_drawn = True

    def _write(self, text: str) -> None:
        assert self._stream is not None
        self._stream.write(text)
        self._stream.flush()
