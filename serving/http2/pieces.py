"""Data that is sent from where it lies, or written as it is sent."""

from collections import deque
from collections.abc import Iterable, Iterator

Buffer = bytes | bytearray | memoryview


class Written:
    """Data of a known length whose parts are made one by one, each once."""

    __slots__ = ("_parts", "num_bytes")

    def __init__(self, num_bytes: int, parts: Iterator[Buffer]) -> None:
        """Take the parts and the number of their bytes together."""
        self.num_bytes = num_bytes
        self._parts = parts

    def next(self) -> Buffer | None:
        """Make the next part; None after the last."""
        return next(self._parts, None)


class Pieces:
    """Long data in buffers, such as those of arrays, which is copied frame by frame as it is sent.

    A copy of all at once would hold up the thread that sends, and all others of the interpreter.
    """

    __slots__ = ("__weakref__", "_num_bytes", "_parts")

    def __init__(self, parts: Iterable[Buffer | Written]) -> None:
        """Take buffers that nobody changes until they are sent, and data to write."""
        self._parts: deque[memoryview | Written | Pieces] = deque()
        self._num_bytes = 0
        for each in parts:
            part = each if isinstance(each, Written) else memoryview(each).cast("B")
            self._parts.append(part)
            self._num_bytes += part.num_bytes if isinstance(part, Written) else len(part)

    def __len__(self) -> int:
        return self._num_bytes

    def __bytes__(self) -> bytes:
        """Return all of them, and keep them."""
        data = self.take(self._num_bytes)
        self.prepend(data)
        return data

    def prepend(self, data: Buffer) -> None:
        """Add data before the rest."""
        self._parts.appendleft(memoryview(data).cast("B"))
        self._num_bytes += len(data)

    def append(self, data: "Buffer | Pieces") -> None:
        """Add data at the end; others are kept as they are until their bytes are taken."""
        self._parts.append(data if isinstance(data, Pieces) else memoryview(data).cast("B"))
        self._num_bytes += len(data)

    def take(self, num_bytes: int) -> bytes:
        """Return the next bytes, as many as are asked for or are left, and forget them."""
        taken: list[Buffer] = []
        left = num_bytes = min(num_bytes, self._num_bytes)
        while left:
            part = self._parts.popleft()
            if isinstance(part, Pieces):
                taken.append(part.take(left))
                left -= len(taken[-1])
                if part:
                    self._parts.appendleft(part)
                continue
            if isinstance(part, Written):
                if (made := part.next()) is not None:
                    self._parts.extendleft((part, memoryview(made).cast("B")))
                continue
            if len(part) > left:
                self._parts.appendleft(part[left:])
                part = part[:left]
            taken.append(part)
            left -= len(part)
        self._num_bytes -= num_bytes
        return b"".join(taken)
