"""One budget for the bodies of all requests in progress, from all peers together."""

import ctypes
import math
from collections import Counter

from serving.transports.http1.http_peer import HttpConnection

_TRIM_BYTES = 16 << 20
"""After so much was kept, free pages go back to the kernel: glibc alone kept 0.6 GiB of forms."""
_MALLOC_OPTIONS = {-1: _TRIM_BYTES, -3: 4 << 20}
"""M_TRIM_THRESHOLD and M_MMAP_THRESHOLD (mallopt(3)), which glibc itself raises to 64 and 32 MiB:
malloc_trim leaves the end of a thread's arena to the first of them."""
_libc = ctypes.CDLL(None)
_trim = getattr(_libc, "malloc_trim", None)


class Bodies:
    """The budget of bodies."""

    def __init__(self, max_bytes: int) -> None:
        """Keep at most so much."""
        if _trim is not None:
            for option, num_bytes in _MALLOC_OPTIONS.items():
                _libc.mallopt(option, num_bytes)
        self._max_bytes = max_bytes
        self._num_buffered = self._num_released = 0
        self._trim_s = math.inf
        self._held: dict[HttpConnection, int] = {}
        """The request that has been in progress for longest first."""

    def buffer(self, connection: HttpConnection, num_bytes: int) -> HttpConnection | None:
        """Note the buffered bytes of a body.

        Returns:
            Who must go for it: of those who have not sent all, at the address that holds the most,
            the one who began first. Call again once it is gone.
        """
        self._num_buffered += num_bytes - self._held.get(connection, 0)
        self._held[connection] = num_bytes
        if self._num_buffered <= self._max_bytes:
            return None
        sizes: Counter[str] = Counter()
        for holder, size in self._held.items():
            sizes[holder.address] += size
        unfinished = [each for each in self._held if not each.is_running]
        return max(unfinished, key=lambda each: sizes[each.address])

    def release(self, connection: HttpConnection) -> None:
        """Note that nothing is kept any more."""
        num_bytes = self._held.pop(connection, 0)
        self._num_buffered -= num_bytes
        self._num_released += num_bytes

    def trim(self, now_s: float) -> None:
        """Give memory back that bodies have left free, a second later: others may have them yet."""
        if self._num_released > _TRIM_BYTES:
            self._num_released, self._trim_s = 0, min(self._trim_s, now_s + 1.0)
        if now_s >= self._trim_s and _trim is not None:
            self._trim_s = math.inf
            _trim(0)
