"""What the calls of all connections share, and how a call that is not answered ends."""

from collections.abc import Callable, Sequence
from typing import Protocol

from serving.batching.group import Group
from serving.errors import DigitsError, Overloaded
from serving.protocols.encoding import ResponseEncoder
from serving.protocols.status import StatusCode
from serving.router import Router
from serving.transports.h2 import status
from serving.transports.h2.connection import Connection
from serving.transports.h2.heads import Head
from serving.transports.h2.limits import Limits
from serving.transports.h2.status import RESPONSE, Status

_OVERLOADED = Overloaded()
_REFUSED = StatusCode.RESOURCE_EXHAUSTED.name
_NO_ROOM = (*RESPONSE, *Status.of(_OVERLOADED).trailers)


class Holder(Protocol):
    """A call that holds bytes, or waits for room in a queue."""

    def resume(self, now_s: float) -> None:
        """Go on, now that there may be room."""

    def end(self, reason: Status | None) -> None:
        """End with a status."""


class Context:
    """Used by the loop's thread only."""

    def __init__(
        self, router: Router, limits: Limits,
        touch: Callable[[Connection], None], post: Callable[[Callable[[], None]], None],
        hurry: Callable[[], None], clock: Callable[[], float],
    ) -> None:  # fmt: skip
        """Connect the parts.

        Args:
            router: the models.
            limits: what peers may use.
            touch: has a connection flushed at the end of the round.
            post: runs a function on the loop's thread; called from any thread.
            hurry: has `Calls.tick` called soon.
            clock: monotonic, in seconds.
        """
        self.hurry = hurry
        self.clock = clock
        self.router = router
        self.metrics = router.metrics
        self.limits = limits
        self.touch = touch
        self.post = post
        self.stalled: dict[Holder, None] = {}
        """Streams that wait for room in a queue, the longest waiting first."""
        self._num_held = 0
        """Bytes of messages that have not arrived whole, or wait for room."""
        self._holding: dict[Holder, int] = {}

    def refuse(self, connection: Connection, stream_id: bytes, head: Head, reason: Status) -> None:
        """End a call that has had no answer with a status, unless its caller has left."""
        if stream_id not in connection.streams:
            return
        connection.http2.refuse([stream_id], (*RESPONSE, *reason.trailers))
        self.metrics.count(head.name, reason.name)
        self.touch(connection)

    def submit(
        self, connection: Connection, head: Head, encoder: ResponseEncoder,
        streams: Sequence[bytes], messages: Sequence[bytes | memoryview], arrived_s: float,
        deadline_s: float,
    ) -> None:  # fmt: skip
        """Let calls wait for a run as far as there is room, and refuse the others."""
        group = Group(connection, streams, messages, encoder, self, arrived_s, deadline_s)
        number = encoder.target.submit(group)
        if number < len(streams):
            self._reject(connection, head, streams[number:])

    def answer(self, group: Group, responses: Sequence[bytes]) -> None:
        """See `Sink`."""
        connection: Connection = group.caller  # type: ignore[assignment]
        connection.http2.answer(group.streams, responses)
        if not connection.touched:
            self.touch(connection)

    def fail(self, group: Group, error: DigitsError) -> None:
        """See `Sink`."""
        connection: Connection = group.caller  # type: ignore[assignment]
        for stream_id in group.streams:
            head = connection.call(stream_id)
            if isinstance(head, Head):
                self.refuse(connection, stream_id, head, Status.of(error))

    def waiting(self, connection: Connection) -> set[bytes]:
        """Return the calls of a connection that were accepted, and wait or run."""
        return set().union(*(batcher.streams_of(connection) for batcher in self.router.batchers))

    def _reject(self, connection: Connection, head: Head, streams: Sequence[bytes]) -> None:
        """Refuse calls that would wait in vain: cheaply, for there may be many."""
        num_open = sum(map(connection.streams.__contains__, streams))
        connection.http2.refuse(streams, _NO_ROOM)
        self.metrics.count(head.name, _REFUSED, num_open)

    def hold(self, holder: Holder, num_bytes: int) -> None:
        """Note the bytes that a call holds of messages; end those with the most if needed.

        All connections share one budget: else a thousand callers, each within its own limits, would
        take all memory.
        """
        self._num_held += num_bytes - self._holding.pop(holder, 0)
        if num_bytes:
            self._holding[holder] = num_bytes
        if self._num_held > self.limits.max_held_bytes:
            largest = sorted(self._holding, key=self._holding.__getitem__, reverse=True)
            for victim in largest:  # down to three quarters, so that this is not done at each byte
                if self._num_held <= self.limits.max_held_bytes * 3 // 4:
                    break
                victim.end(status.OUT_OF_MEMORY)
