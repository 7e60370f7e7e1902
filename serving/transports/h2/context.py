"""The shared state of all connections' calls, and the end of calls that are not answered."""

import heapq
import itertools
from collections.abc import Sequence
from typing import Any, Protocol

from serving.batching.queue import Group, ResponseEncoder
from serving.errors import DigitsError, Overloaded
from serving.protocols.status import Status, StatusCode
from serving.router import Router
from serving.transports.connections import Limits
from serving.transports.h2 import trailers
from serving.transports.h2.call_headers import Headers
from serving.transports.h2.h2_peer import Connection
from serving.transports.h2.trailers import RESPONSE, trailers_of
from serving.transports.loop import Loop

_OVERLOADED = Overloaded()
_REFUSED = StatusCode.RESOURCE_EXHAUSTED.name
_NO_ROOM = (*RESPONSE, *trailers_of(Status.of(_OVERLOADED)))

_RESUME_S = 0.002
"""How long a tick resumes streams that wait for room."""
_MIN_TIMERS = 1000
"""Timers of ended streams that are kept at least, until they are removed together."""


class Buffering(Protocol):
    """A call that holds bytes, or waits for room in a queue."""

    def resume(self, now_s: float) -> None:
        """Go on, now that there may be room."""

    def end(self, reason: Status | None) -> None:
        """End with a status."""


class Context:
    """Used by the loop's thread only."""

    def __init__(self, router: Router, limits: Limits, loop: Loop) -> None:
        """Connect the models, the limits of peers, and the loop."""
        self.router = router
        self.metrics = router.metrics
        self.limits = limits
        self.schedule_flush = loop.schedule_flush
        self.post, self.hurry, self.clock = loop.post, loop.hurry, loop.clock
        self.stalled: dict[Buffering, None] = {}
        """Streams that wait for room in a queue, the longest waiting first."""
        self._timers: list[tuple[float, int, Connection, bytes, Buffering]] = []
        """(deadline, tie-breaker, connection, stream's number, stream); a heap."""
        self._num_timers = itertools.count()
        self._max_timers = _MIN_TIMERS
        self._num_buffered = 0
        """Bytes of messages that have not arrived whole, or wait for room."""
        self._buffered: dict[Buffering, int] = {}

    def refuse(
        self, connection: Connection, stream_id: bytes, head: Headers, reason: Status
    ) -> None:
        """End a call that has had no answer with a status, unless its caller has left."""
        if stream_id not in connection.streams:
            return
        connection.http2.refuse([stream_id], (*RESPONSE, *trailers_of(reason)))
        self.metrics.count(head.name, reason.code.name)
        self.schedule_flush(connection)

    def submit(
        self, connection: Connection, head: Headers, encoder: ResponseEncoder,
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
        if not connection.is_dirty:
            self.schedule_flush(connection)

    def fail(self, group: Group, error: DigitsError) -> None:
        """See `Sink`."""
        connection: Connection = group.caller  # type: ignore[assignment]
        for stream_id in group.streams:
            head = connection.call(stream_id)
            if isinstance(head, Headers):
                self.refuse(connection, stream_id, head, Status.of(error))

    def not_queued(self, connection: Connection) -> list[tuple[bytes, Any]]:
        """Return the streams of a connection, and its calls whose message has not arrived."""
        queued = set().union(*(each.streams_of(connection) for each in self.router.batchers))
        calls = [(s, state.call) for s, state in connection.streams.items() if state.call]
        return [(s, call) for s, call in calls if s not in queued or not isinstance(call, Headers)]

    def _reject(self, connection: Connection, head: Headers, streams: Sequence[bytes]) -> None:
        """Refuse calls that would wait in vain: cheaply, for there may be many."""
        num_open = sum(map(connection.streams.__contains__, streams))
        connection.http2.refuse(streams, _NO_ROOM)
        self.metrics.count(head.name, _REFUSED, num_open)

    def buffer(self, holder: Buffering, num_bytes: int) -> None:
        """Note the bytes that a call holds of messages; end those with the most if needed.

        All connections share one budget: else a thousand callers, each within its own limits, would
        take all memory.
        """
        self._num_buffered += num_bytes - self._buffered.pop(holder, 0)
        if num_bytes:
            self._buffered[holder] = num_bytes
        if self._num_buffered > self.limits.max_buffered_bytes:
            largest = sorted(self._buffered, key=self._buffered.__getitem__, reverse=True)
            for victim in largest:  # down to three quarters, so that this is not done at each byte
                if self._num_buffered <= self.limits.max_buffered_bytes * 3 // 4:
                    break
                victim.end(trailers.OUT_OF_MEMORY)

    # Time

    def end_at(
        self, deadline_s: float, connection: Connection, stream_id: bytes, stream: Buffering
    ) -> None:
        """End a stream at its deadline, if it has not ended before."""
        heapq.heappush(
            self._timers, (deadline_s, next(self._num_timers), connection, stream_id, stream)
        )
        self.hurry()
        if len(self._timers) > self._max_timers:  # most are of streams that have ended
            self._timers = [t for t in self._timers if t[2].call(t[3]) is t[4]]
            heapq.heapify(self._timers)
            self._max_timers = _MIN_TIMERS + 2 * len(self._timers)

    def is_due(self, now_s: float) -> bool:
        """Return whether `tick` has something to do by then, or may have at any time."""
        return bool(self.stalled or (self._timers and self._timers[0][0] <= now_s))

    def tick(self, now_s: float) -> None:
        """End the streams whose deadline has passed; resume those that waited for room."""
        while self._timers and self._timers[0][0] <= now_s:
            _, _, connection, stream_id, stream = heapq.heappop(self._timers)
            if connection.call(stream_id) is stream:
                stream.end(trailers.LATE)
        end_s = self.clock() + _RESUME_S
        for _ in range(len(self.stalled)):
            holder = next(iter(self.stalled))
            del self.stalled[holder]
            holder.resume(now_s)
            if self.clock() > end_s:
                break
