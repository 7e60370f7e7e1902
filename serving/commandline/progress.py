"""A progress bar on a terminal, and plain lines elsewhere."""

import threading
import time
from typing import TextIO


class Bar:
    """A line at the foot of a terminal; elsewhere nothing, or a line now and then."""

    INTERVAL_S, LINE_INTERVAL_S = 0.1, 10.0

    def __init__(self, total: int, stream: TextIO | None, line: str = "") -> None:
        """Draw nothing yet.

        Args:
            total: the number of pictures or rows.
            stream: usually stderr.
            line: a line for streams that are no terminals, such as "scored {} of {} rows".
        """
        self._is_terminal = stream is not None and stream.isatty() and total > 1
        self._stream = stream if self._is_terminal or line else None
        self._line = line
        self._total, self._done = total, 0
        self._start_s = self._next_s = time.monotonic()
        self._next_s += 0.0 if self._is_terminal else self.LINE_INTERVAL_S
        self._is_drawn = False
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Remove the bar, so that a line can be printed."""
        with self._lock:
            if self._is_drawn:
                self._write("\r\x1b[K")
                self._is_drawn = False

    def advance(self, num: int = 1) -> None:
        """Count some pictures or rows, from any thread; draw or write after an interval."""
        with self._lock:
            self._done += num
            now_s = time.monotonic()
            if self._stream is None or now_s < self._next_s:
                return
            done, spent_s = self._done, now_s - self._start_s
            total = max(self._total, done)  # of a search the number is not known before
            left = f"{spent_s / done * (total - done):.0f} s left"
            if self._is_terminal:
                self._next_s = now_s + self.INTERVAL_S
                bar = "#" * (30 * done // total)
                self._write(f"\r[{bar:.<30}] {done} of {total}, {left}\x1b[K")
                self._is_drawn = True
            else:
                self._next_s = now_s + self.LINE_INTERVAL_S
                rate = f"{done / spent_s:.0f}/s, " if done >= spent_s else ""
                self._write(f"{self._line.format(done, total)}, {rate}{left}\n")

    def _write(self, text: str) -> None:
        assert self._stream is not None
        self._stream.write(text)
        self._stream.flush()
