"""What the calls of all connections share, and how a call that is not answered ends."""

from collections.abc import Callable, Hashable, Sequence
from functools import partial
from typing import Protocol

from serving.batching.request import Outcome, Request
from serving.classifier import Classifier
from serving.errors import DigitsError, Overloaded
from serving.protocols.plan import Plan, frame
from serving.protocols.status import StatusCode
from serving.telemetry.tracing import latest_run
from serving.transports.h2 import status
from serving.transports.h2.connection import Connection
from serving.transports.h2.heads import Head
from serving.transports.h2.limits import Limits
from serving.transports.h2.queue import Group, Queue
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
        self, queue: Queue, classifier: Classifier, limits: Limits,
        touch: Callable[[Connection], None], post: Callable[[Callable[[], None]], None],
        clock: Callable[[], float],
    ) -> None:  # fmt: skip
        """Connect the parts.

        Args:
            queue: takes what the loop runs itself.
            classifier: its batcher takes larger requests, its metrics count.
            limits: what peers may use.
            touch: has a connection flushed at the end of the round.
            post: runs a function on the loop's thread; called from any thread.
            clock: monotonic, in seconds.
        """
        self.clock = clock
        self.queue = queue
        self.batcher = classifier.batcher
        self.metrics = classifier.metrics
        self.image_bytes = classifier.signature.image_bytes
        self.limits = limits
        self.touch = touch
        self.post = post
        self.max_inline_images = 0
        """The largest request that the loop runs itself; 0 where a run takes long."""
        self.is_slower = False
        """Whether recognised calls may have become too large for the loop."""
        self.stalled: dict[Holder, None] = {}
        """Streams that wait for room in a queue, the longest waiting first."""
        self._num_held = 0
        """Bytes of messages that have not arrived whole, or wait for room."""
        self._holding: dict[Holder, int] = {}

    def refuse(self, connection: Connection, stream_id: bytes, head: Head, reason: Status) -> None:
        """End a call that has had no answer with a status."""
        connection.http2.refuse([stream_id], (*RESPONSE, *reason.trailers))
        self.metrics.count(head.name, reason.name)
        self.touch(connection)

    def fail(self, connection: Connection, stream_id: bytes, error: DigitsError) -> None:
        """End a call of images that waited with an error."""
        head = connection.call(stream_id)
        if isinstance(head, Head):
            head.note_failure(error)
            self.refuse(connection, stream_id, head, Status.of(error))

    def submit(self, group: Group, head: Head) -> None:
        """Let calls wait for a run as far as there is room, and refuse the others."""
        connection, queue, number = group.caller, self.queue, len(group.streams)
        num_rows = group.plan.num_rows * number
        if queue.num_rows + num_rows > queue.run_rows:
            room = queue.room(connection.line, group.deadline_s - group.arrived_s)
            if room < num_rows:
                number = max(0, int(room // group.plan.num_rows))
                self._reject(connection, head, group.streams[number:])
                group = group.cut(0, number)
        if number:
            queue.put(group)

    def _reject(self, connection: Connection, head: Head, streams: Sequence[bytes]) -> None:
        """Refuse calls that would wait in vain: cheaply, for there may be many."""
        connection.http2.refuse(streams, _NO_ROOM)
        for _ in streams:
            head.note_failure(_OVERLOADED)
        self.metrics.count(head.name, _REFUSED, len(streams))

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

    def large_request(
        self, pixels: bytes | memoryview, plan: Plan, caller: Hashable, deadline_s: float,
        finish: Callable[[bytes | DigitsError], None],
    ) -> Request:  # fmt: skip
        """Have a runner thread run images.

        Args:
            pixels: the bytes of N images.
            plan: how they are answered.
            caller: who takes turns with others.
            deadline_s: in monotonic seconds.
            finish: called on the loop's thread, with the framed response or why there is none.

        Raises: what `Batcher.put` raises.
        """

        def take_outcome(outcome: Outcome) -> None:
            response = outcome if isinstance(outcome, DigitsError) else frame(plan.respond(outcome))
            self.post(partial(_finish, finish, response, latest_run.get()))

        request = Request(pixels, plan.num_rows, caller=caller, deadline_s=deadline_s)
        self.batcher.put(request, take_outcome)
        self.batcher.wake()
        return request


def _finish(
    finish: Callable[[bytes | DigitsError], None],
    response: bytes | DigitsError,
    run: tuple[float, float],
) -> None:
    latest_run.set(run)  # of the loop's thread; it was set on the runner's
    finish(response)
