"""Log lines about peers that send what is no request: one a minute."""

import logging

_log = logging.getLogger(__name__)
_INTERVAL_S = 60.0


class Complaints:
    """Counts what is wrong, and logs it."""

    def __init__(self) -> None:
        """Start without any."""
        self._number = 0
        self._last = ""
        self._next_s = 0.0

    def note(self, address: str, text: str, now_s: float) -> None:
        """Note a peer's fault."""
        self._number += 1
        self._last = f"{address or 'unix:'}: {text}"
        self.tick(now_s)

    def tick(self, now_s: float) -> None:
        """Log what was noted, if a minute has passed."""
        if self._number and now_s >= self._next_s:
            _log.warning("bad HTTP requests: %d, the last from %s", self._number, self._last)
            self._number, self._next_s = 0, now_s + _INTERVAL_S
