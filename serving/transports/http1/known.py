"""Requests that are recognised by their bytes, of which only the rows are read."""

from collections.abc import Callable, Sequence
from typing import Any

from serving.batching.queue import Group, ResponseEncoder
from serving.errors import DigitsError


class Known:
    """Requests of one connection that differ only in the rows at their end, and their sink."""

    def __init__(
        self, prefix: bytes, num_bytes: int, encoder: ResponseEncoder, timeout_s: float,
        end: Callable[[Any, bytes | DigitsError], None],
    ) -> None:  # fmt: skip
        """Describe requests.

        Args:
            prefix: the head and the bytes before the rows.
            num_bytes: the length of all.
            encoder: makes answers but for their first two lines.
            timeout_s: how long they may take.
            end: answers the one in progress on a connection.
        """
        self._prefix, self._num_bytes = prefix, num_bytes
        self._encoder, self._timeout_s, self._end = encoder, timeout_s, end

    def is_same(self, data: bytes) -> bool:
        """Return whether a read is such a request, whole and alone."""
        return len(data) == self._num_bytes and data.startswith(self._prefix)

    def group(self, connection: Any, data: bytes, now_s: float) -> Group:
        """Return the batcher's side of a request."""
        rows, deadline_s = data[len(self._prefix) :], now_s + self._timeout_s
        streams = [connection.stream]
        return Group(connection, streams, [rows], self._encoder, self, now_s, deadline_s)

    def answer(self, group: Group, responses: Sequence[bytes]) -> None:
        """See `Sink`."""
        for response in responses:
            self._end(group.caller, response)

    def fail(self, group: Group, error: DigitsError) -> None:
        """See `Sink`."""
        self._end(group.caller, error)
