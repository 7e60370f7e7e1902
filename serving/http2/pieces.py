"""Data that is sent from where it lies."""

from collections import deque
from collections.abc import Iterable

Buffer = bytes | bytearray | memoryview


class Pieces:
    """Long data in buffers, such as those of arrays, which is copied frame by frame as it is sent.

    A copy of all at once would hold up the thread that sends, and all others of the interpreter.
    """

    __slots__ = ("__weakref__", "_num_bytes", "_parts")

    def __init__(self, parts: Iterable[Buffer]) -> None:
        """Take buffers that nobody changes until they are sent."""
        self._parts = deque(memoryview(part).cast("B") for part in parts)
        self._num_bytes = sum(map(len, self._parts))

    def __len__(self) -> int:
        return self._num_bytes

    def __bytes__(self) -> bytes:
        return b"".join(self._parts)

    def append(self, data: "Buffer | Pieces") -> None:
        """Add data at the end."""
        parts = data._parts if isinstance(data, Pieces) else [memoryview(data).cast("B")]
        self._parts += parts
        self._num_bytes += len(data)

    def take(self, num_bytes: int) -> bytes:
        """Return the next bytes, as many as are asked for or are left, and forget them."""
        taken: list[memoryview] = []
        left = num_bytes = min(num_bytes, self._num_bytes)
        while left:
            part = self._parts.popleft()
            if len(part) > left:
                self._parts.appendleft(part[left:])
                part = part[:left]
            taken.append(part)
            left -= len(part)
        self._num_bytes -= num_bytes
        return b"".join(taken)
