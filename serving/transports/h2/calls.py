"""From HTTP/2's events to calls, and how calls end.

    headers ──▶ Head ──▶ one message of images, in one piece ──▶ Queue ──▶ a run
                  └────▶ Stream, anything else ──▶ Queue, a runner thread, or an answer at once

Each message is read once, here or in its Stream.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any

import grpc

from serving.batching.request import Outcome, Request
from serving.classifier import Classifier
from serving.errors import DigitsError, Overloaded
from serving.http2 import events
from serving.http2.headers import Block
from serving.protocols.method import ImagesUnary
from serving.protocols.plan import Plan, frame
from serving.telemetry.tracing import latest_run
from serving.transports.h2 import status
from serving.transports.h2.connection import Connection
from serving.transports.h2.heads import Head, Heads, HttpError
from serving.transports.h2.limits import Limits
from serving.transports.h2.queue import Entry, Queue
from serving.transports.h2.status import RESPONSE, Status
from serving.transports.h2.stream import Stream

_MAX_EXPECTED_BYTES = 16 << 10
"""The longest messages that are recognised by their bytes: one frame, read in one piece."""
_MIN_TIMERS = 1000
"""Timers of ended streams that are kept at least, until they are removed together."""
_OVERLOADED = Overloaded()
_REFUSED = grpc.StatusCode.RESOURCE_EXHAUSTED.name
_NO_ROOM = (*RESPONSE, *Status.of(_OVERLOADED).trailers)


class Calls:
    """Reads calls and routes them; used by the loop's thread only."""

    def __init__(
        self, heads: Heads, queue: Queue, classifier: Classifier, limits: Limits,
        touch: Callable[[Connection], None], post: Callable[[Callable[[], None]], None],
    ) -> None:  # fmt: skip
        """Connect the parts.

        Args:
            heads: reads headers.
            queue: takes what the loop runs itself.
            classifier: its batcher takes larger requests, its metrics count.
            limits: what peers may use.
            touch: has a connection flushed at the end of the round.
            post: runs a function on the loop's thread; called from any thread.
        """
        self._heads = heads
        self.need_tokens = heads.need_tokens
        self.queue = queue
        self.batcher = classifier.batcher
        self.metrics = classifier.metrics
        self.limits = limits
        self.image_bytes = classifier.signature.image_bytes
        self.touch = touch
        self.post = post
        self.max_inline_images = 0
        """The largest request that the loop runs itself; 0 where a run takes long."""
        self.refusal: DigitsError | None = None
        """Why new calls are refused, once the server drains."""
        self.stalled: dict[Stream, None] = {}
        """Streams that wait for room in a queue, the longest waiting first."""
        self._num_held = 0
        """Bytes of messages that have not arrived whole, or wait for room."""
        self._holding: dict[Stream, int] = {}
        self._num_timers = itertools.count()
        self._timers: list[tuple[float, int, Connection, bytes, Stream]] = []
        """(deadline, tie-breaker, connection, stream's number, stream); a heap."""
        self._max_timers = _MIN_TIMERS
        self.has_new_timers = False
        """Whether streams with a deadline have begun since the last `tick`."""

    def check_tokens(self, connections: Iterable[Connection]) -> None:
        """Have headers read again where other tokens are valid now."""
        if self._heads.have_changed():
            for connection in connections:
                connection.http2.forget()

    def receive(self, connection: Connection, data: bytes, now_s: float) -> None:
        """Take what a connection has sent.

        Raises:
            Http2Error: the peer broke the protocol.
        """
        streams = connection.streams
        for kind, stream, value, ended in connection.http2.receive(data, now_s):
            if kind == events.CALLS:
                block, plan, found = value
                self._queue_calls(connection, block.call, plan, found, now_s)
                continue
            if kind == events.RESET:
                self._cancel(connection, value[1], now_s)
                continue
            if kind == events.GOAWAY:
                connection.is_leaving = True
                continue
            state = streams.get(stream)
            if state is None:  # over in the meantime
                continue
            if kind == events.HEADERS:
                head = state.call = self._read(connection, value)
                if head.is_plain and not ended and self.refusal is None:
                    continue
                self._open(connection, stream, head, now_s, ended=ended)
            elif kind == events.DATA:
                self._take(connection, stream, state, value, now_s, ended=ended)
            elif kind == events.MESSAGE:
                self._take_message(connection, stream, state.call, value, now_s, ended=ended)
            else:
                self._receive_part(connection, stream, b"", now_s, ended=True)

    def _read(self, connection: Connection, block: Block) -> Head:
        """Understand headers."""
        if block.call is None:
            block.call = self._heads.get(block.fields)
            connection.trusted |= block.call.trusted
            block.shrink()
        head: Head = block.call
        return head

    def _take(
        self, connection: Connection, stream: bytes, state: Any, data: bytes, now_s: float,
        *, ended: bool
    ) -> None:  # fmt: skip
        """Take data of a call: a whole message of images in a known layout, or anything else."""
        call = state.call
        num_images = len(data) // self.image_bytes
        size = num_images * self.image_bytes
        prefix = data[: len(data) - size]
        plan = call.layouts.get(prefix) if call is not None else None
        if plan is not None and plan.num_rows == num_images <= self.max_inline_images:
            is_stream = call.__class__ is Stream
            is_repeated = state.block.is_repeated or is_stream
            if is_repeated and len(data) <= _MAX_EXPECTED_BYTES and self.refusal is None:
                connection.http2.expect(state.block, (prefix, size), plan, calls=not is_stream)
            if ended and call.__class__ is Head:
                self._queue_calls(connection, call, plan, [(stream, data[-size:])], now_s)
                return
        self._receive_part(connection, stream, data, now_s, ended=ended)

    def _take_message(
        self, connection: Connection, stream: bytes, call: Head | Stream, value: Any, now_s: float,
        *, ended: bool
    ) -> None:  # fmt: skip
        """Take a frame that was recognised as a message."""
        (prefix, size), plan, pixels = value
        if isinstance(call, Stream) and call.can_run:
            call.run_message(plan, pixels, len(prefix) + size, now_s, ended=ended)
        elif ended and isinstance(call, Head):
            self._queue_calls(connection, call, plan, [(stream, pixels)], now_s)
        else:
            self._receive_part(connection, stream, prefix + pixels, now_s, ended=ended)

    def _queue_calls(
        self, connection: Connection, head: Head, plan: Plan, found: list[tuple[bytes, bytes]],
        now_s: float,
    ) -> None:  # fmt: skip
        """Queue calls of one kind that have come whole, as far as there is room."""
        is_unread = connection.http2.blocked and connection.is_unread(self.limits)
        if self.refusal is not None or is_unread:
            reason = status.UNREAD if self.refusal is None else Status.of(self.refusal)
            for stream, _ in found:
                self.refuse(connection, stream, head, reason)
            return
        num_rows = plan.num_rows
        room = self.queue.room(head.timeout_s)
        rejected: list[tuple[bytes, bytes]] = []
        if room < num_rows * len(found):
            num_accepted = max(0, int(room // num_rows))
            found, rejected = found[:num_accepted], found[num_accepted:]
        if found:
            deadline_s = now_s + head.timeout_s
            entries: list[Entry] = [
                (connection, stream, pixels, plan, now_s, deadline_s, None)
                for stream, pixels in found
            ]
            self.queue.put_all(connection, entries, num_rows * len(entries))
        if rejected:
            self._reject(connection, head, [stream for stream, _ in rejected])

    def _receive_part(
        self, connection: Connection, stream: bytes, data: bytes, now_s: float, *, ended: bool
    ) -> None:
        """Take data, or the end, of a call that is no message of images in a known layout."""
        call = connection.call(stream)
        if isinstance(call, Head):
            call = self._stream(connection, stream, call, now_s)
        if call is not None:
            call.receive(data, now_s, ended=ended)

    def _stream(self, connection: Connection, stream_id: bytes, head: Head, now_s: float) -> Stream:
        """Make a call a stream, which ends at its deadline."""
        stream = connection.streams[stream_id].call = Stream(self, connection, stream_id, head)
        if head.timeout_s != math.inf:
            deadline_s = now_s + head.timeout_s
            timer = (deadline_s, next(self._num_timers), connection, stream_id, stream)
            heapq.heappush(self._timers, timer)
            self.has_new_timers = True
            if len(self._timers) > self._max_timers:  # most are of streams that have ended
                self._timers = [t for t in self._timers if t[2].call(t[3]) is t[4]]
                heapq.heapify(self._timers)
                self._max_timers = _MIN_TIMERS + 2 * len(self._timers)
        return stream

    def _open(
        self, connection: Connection, stream_id: bytes, head: Head, now_s: float, *, ended: bool
    ) -> None:
        """Begin any other call as a stream, or refuse it."""
        refusal = head.refusal
        if isinstance(refusal, HttpError):
            headers = ((b":status", refusal.status), (b"content-type", b"text/plain"))
            connection.http2.refuse([stream_id], headers, refusal.text)
            self.touch(connection)
            return
        if refusal is None and isinstance(head.method, ImagesUnary):
            if self.refusal is not None:
                refusal = Status.of(self.refusal)
            elif connection.is_unread(self.limits):
                refusal = status.UNREAD
        if refusal is not None:
            self.refuse(connection, stream_id, head, refusal)
            return
        self._stream(connection, stream_id, head, now_s)
        if ended:
            self._receive_part(connection, stream_id, b"", now_s, ended=True)

    def refuse(self, connection: Connection, stream_id: bytes, head: Head, reason: Status) -> None:
        """End a call that has had no answer with a status."""
        connection.http2.refuse([stream_id], (*RESPONSE, *reason.trailers))
        self.metrics.count(head.name, reason.name)
        self.touch(connection)

    def fail(self, connection: Connection, stream_id: bytes, error: DigitsError) -> None:
        """End a call of images that waited with an error."""
        head = connection.call(stream_id)
        assert isinstance(head, Head)
        head.note_failure(error)
        self.refuse(connection, stream_id, head, Status.of(error))

    def submit(self, entry: Entry) -> None:
        """Let a call wait for a run, or refuse it."""
        connection, stream_id, _, plan, arrived_s, deadline_s, _ = entry
        if plan.num_rows <= self.queue.room(deadline_s - arrived_s):
            self.queue.put(entry)
        else:
            self._reject(connection, connection.call(stream_id), [stream_id])

    def _reject(self, connection: Connection, head: Head, streams: list[bytes]) -> None:
        """Refuse calls that would wait in vain: cheaply, for there may be many."""
        connection.http2.refuse(streams, _NO_ROOM)
        for _ in streams:
            head.note_failure(_OVERLOADED)
        self.metrics.count(head.name, _REFUSED, len(streams))

    def hold(self, stream: Stream, num_bytes: int) -> None:
        """Note the bytes that a stream holds of messages; end those with the most if needed.

        All connections share one budget: else a thousand callers, each within its own limits, would
        take all memory.
        """
        self._num_held += num_bytes - self._holding.pop(stream, 0)
        if num_bytes:
            self._holding[stream] = num_bytes
        if self._num_held > self.limits.max_held_bytes:
            largest = sorted(self._holding, key=self._holding.__getitem__, reverse=True)
            for victim in largest:  # down to three quarters, so that this is not done at each byte
                if self._num_held <= self.limits.max_held_bytes * 3 // 4:
                    break
                victim.end(status.OUT_OF_MEMORY)

    def _cancel(self, connection: Connection, state: Any, now_s: float) -> None:
        """Forget a call whose caller has left, unless its answer was on its way."""
        call = state.call
        if call is None:
            if state.trailers is not None:
                return
            call = self._read(connection, state.block)  # it came and went in one read
        if isinstance(call, Head):
            self.queue.note_cancelled(now_s)
            self.metrics.count(call.name, "CANCELLED")
        else:
            call.cancel()

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

    def forget(self, connection: Connection) -> None:
        """Cancel all calls of a connection that is over."""
        self.queue.forget(connection)
        streams = list(connection.streams.values())
        connection.streams.clear()
        for state in streams:
            self._cancel(connection, state, 0.0)

    def drain(self, refusal: DigitsError, connections: Iterable[Connection]) -> None:
        """Refuse new calls of images, and those whose message has not arrived."""
        self.refusal = refusal
        reason = Status.of(refusal)
        for connection in connections:
            connection.http2.forget()
            waiting = {entry[1] for entry in connection.waiting}
            for stream_id, state in list(connection.streams.items()):
                if isinstance(state.call, Stream):
                    state.call.drain(reason)
                elif state.call is not None and stream_id not in waiting:
                    self.refuse(connection, stream_id, state.call, reason)

    def is_due(self, now_s: float) -> bool:
        """Return whether `tick` has something to do by then, or may have at any time."""
        return bool(self.stalled or (self._timers and self._timers[0][0] <= now_s))

    def tick(self, now_s: float) -> None:
        """End the streams whose deadline has passed; resume those that waited for room."""
        self.has_new_timers = False
        while self._timers and self._timers[0][0] <= now_s:
            _, _, connection, stream_id, stream = heapq.heappop(self._timers)
            if connection.call(stream_id) is stream:
                stream.end(status.LATE)
        for _ in range(len(self.stalled)):
            if not self.queue.has_room_for_streams:
                break
            stream = next(iter(self.stalled))
            del self.stalled[stream]
            stream.resume(now_s)

    def sweep(self, connection: Connection) -> None:
        """End the calls whose message has not arrived since the last sweep but one."""
        waiting = {entry[1] for entry in connection.waiting}
        for stream_id, state in list(connection.streams.items()):
            if stream_id > connection.swept_stream:
                continue
            if isinstance(state.call, Stream):
                if state.call.is_incomplete:
                    state.call.end(status.TOO_SLOW)
            elif state.call is not None and stream_id not in waiting:
                self.refuse(connection, stream_id, state.call, status.TOO_SLOW)
        connection.swept_stream = max(connection.streams, default=connection.swept_stream)


def _finish(
    finish: Callable[[bytes | DigitsError], None],
    response: bytes | DigitsError,
    run: tuple[float, float],
) -> None:
    latest_run.set(run)  # of the loop's thread; it was set on the runner's
    finish(response)
