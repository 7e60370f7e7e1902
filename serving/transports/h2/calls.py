"""From HTTP/2's events to calls, and how calls end.

    headers ──▶ Head ──▶ one message of images, in one piece ──▶ Queue ──▶ a run
                  └────▶ Stream, anything else ──▶ Queue, a runner thread, or an answer at once

Each message is read once, here or in its Stream.
"""

import heapq
import itertools
import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any

import grpc

from serving.batching.request import Outcome, Request
from serving.classifier import Classifier
from serving.errors import DigitsError, Overloaded
from serving.protocols.method import ImagesUnary
from serving.protocols.plan import Plan, frame
from serving.telemetry.tracing import latest_run
from serving.transports.h2 import http2, status
from serving.transports.h2.connection import RESPONSE, Connection
from serving.transports.h2.heads import Head, Heads, HttpError
from serving.transports.h2.http2 import (
    ConnectionClosed,
    DataReceived,
    RequestReceived,
    StreamClosed,
    TrailersReceived,
)
from serving.transports.h2.limits import Limits
from serving.transports.h2.queue import Entry, Queue
from serving.transports.h2.sieve import Sieve
from serving.transports.h2.status import Status
from serving.transports.h2.stream import Stream

_TINY_BYTES = 64
"""Less data in a frame costs more to read than it is worth; clients send some, such as prefixes."""
_MAX_TINY_FRAMES = 1000
"""How many more of them than of other frames one connection may send."""
_MIN_TIMERS = 1000
"""Timers of ended streams that are kept at least, until they are removed together."""
_OVERLOADED = Overloaded()
_REFUSED = grpc.StatusCode.RESOURCE_EXHAUSTED.name
_NO_ROOM = (*RESPONSE, *Status.of(_OVERLOADED).trailers)
_NO_ROOM_BLOCK = http2.encode_without_table(_NO_ROOM)
_MIN_REJECTED = 4
"""Calls of one read whose refusal is worth a sieve."""


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
        self._timers: list[tuple[float, int, Connection, int, Stream]] = []
        """(deadline, tie-breaker, connection, stream's number, stream); a heap."""
        self._max_timers = _MIN_TIMERS
        self.has_new_timers = False
        """Whether streams with a deadline have begun since the last `tick`."""

    def check_tokens(self, connections: Iterable[Connection]) -> None:
        """Have headers read again where other tokens are valid now."""
        if self._heads.have_changed():
            for connection in connections:
                connection.headers = None
                if connection.sieve is not None:
                    connection.sieve.forget()

    def receive(self, connection: Connection, now_s: float) -> bool:
        """Take the events of a connection's last read.

        Returns:
            False if the connection is over.
        """
        calls, inline_images = connection.calls, self.max_inline_images
        known, head = connection.headers, connection.head
        image_bytes = self.image_bytes
        num_unread = connection.http2.queued_body_size()
        is_open = self.refusal is None and num_unread <= self.limits.max_unread_bytes
        acknowledge = connection.http2.acknowledge_received_data
        entries: list[Entry] = []
        rejected: list[int] = []
        num_rows, room, measured = 0, 0.0, None
        event: Any  # comparing its class is the fastest way to find out what it has
        sieve = connection.sieve
        for event in (sieve or connection.http2).events():
            kind = event.__class__
            if kind is RequestReceived:
                headers = event.headers
                if headers != known:
                    known, head = headers, self._heads.get(headers)
                    connection.headers, connection.head = known, head
                    connection.trusted |= head.trusted
                if is_open and head.is_plain and not event.end_stream:
                    calls[event.stream_id] = head
                else:
                    self._open(connection, event.stream_id, head, now_s, ended=event.end_stream)
            elif kind is DataReceived:
                stream_id, data = event.stream_id, event.data
                call: Any = calls.get(stream_id)
                num_images = len(data) // image_bytes
                size = num_images * image_bytes
                plan = None
                if call.__class__ is Head and event.end_stream:
                    plan = call.layouts.get(data[: len(data) - size])
                if plan is None or plan.num_rows != num_images or num_images > inline_images:
                    self._receive_part(connection, stream_id, data, now_s, ended=event.end_stream)
                    continue
                acknowledge(len(data), stream_id)
                if call is not measured:  # calls with equal headers share their Head
                    measured, deadline_s = call, now_s + call.timeout_s
                    room = self.queue.room(call.timeout_s) - num_rows
                if num_images > room:
                    rejected.append(stream_id)
                    continue
                room -= num_images
                num_rows += num_images
                entries.append((connection, stream_id, data[-size:], plan, now_s, deadline_s, None))
            elif kind is StreamClosed:
                if event.stream_id in calls:
                    self._cancel(connection, event.stream_id, now_s)
            elif kind is TrailersReceived:
                self._receive_part(connection, event.stream_id, b"", now_s, ended=True)
            elif kind is ConnectionClosed:
                return False
        if entries:
            self.queue.put_all(connection, entries, num_rows)
        if rejected:
            self._reject(connection, rejected)
        if sieve is not None:
            self._count_rejected(sieve.refused)
            sieve.refused.clear()
            if sieve.is_over:
                connection.sieve, connection.can_sift = None, sieve.is_useful
        return True

    def _receive_part(
        self, connection: Connection, stream_id: int, data: bytes, now_s: float, *, ended: bool
    ) -> None:
        """Take data, or the end, of a call that is no message of images in a known layout."""
        call = connection.calls.get(stream_id)
        if call is None:
            connection.consume(stream_id, len(data))
            return
        if len(data) < _TINY_BYTES and not ended:
            connection.num_tiny += 1
            if connection.num_tiny > _MAX_TINY_FRAMES:
                raise http2.Error("too many tiny frames")
        elif connection.num_tiny:
            connection.num_tiny -= 1
        if isinstance(call, Head):
            call = self._stream(connection, stream_id, call, now_s)
        call.receive(data, now_s, ended=ended)

    def _stream(self, connection: Connection, stream_id: int, head: Head, now_s: float) -> Stream:
        """Make a call a stream, which ends at its deadline."""
        stream = connection.calls[stream_id] = Stream(self, connection, stream_id, head)
        if head.timeout_s != math.inf:
            deadline_s = now_s + head.timeout_s
            timer = (deadline_s, next(self._num_timers), connection, stream_id, stream)
            heapq.heappush(self._timers, timer)
            self.has_new_timers = True
            if len(self._timers) > self._max_timers:  # most are of streams that have ended
                self._timers = [t for t in self._timers if t[2].calls.get(t[3]) is t[4]]
                heapq.heapify(self._timers)
                self._max_timers = _MIN_TIMERS + 2 * len(self._timers)
        return stream

    def _open(
        self, connection: Connection, stream_id: int, head: Head, now_s: float, *, ended: bool
    ) -> None:
        """Begin any other call as a stream, or refuse it."""
        refusal = head.refusal
        if isinstance(refusal, HttpError):
            headers = ((b":status", refusal.status), (b"content-type", b"text/plain"))
            connection.send(stream_id, headers, refusal.text, final=True)
            self.touch(connection)
            return
        if refusal is None and isinstance(head.method, ImagesUnary):
            if self.refusal is not None:
                refusal = Status.of(self.refusal)
            elif connection.http2.queued_body_size() > self.limits.max_unread_bytes:
                refusal = status.UNREAD
        if refusal is not None:
            self.refuse(connection, stream_id, head, refusal)
            return
        self._stream(connection, stream_id, head, now_s)
        if ended:
            self._receive_part(connection, stream_id, b"", now_s, ended=True)

    def refuse(self, connection: Connection, stream_id: int, head: Head, reason: Status) -> None:
        """End a call that has had no answer with a status."""
        connection.calls.pop(stream_id, None)
        connection.send(stream_id, (*RESPONSE, *reason.trailers), final=True)
        self.metrics.count(head.name, reason.name)
        self.touch(connection)

    def fail(self, connection: Connection, stream_id: int, error: DigitsError) -> None:
        """End a call of images that waited with an error."""
        head = connection.calls[stream_id]
        assert isinstance(head, Head)
        head.note_failure(error)
        self.refuse(connection, stream_id, head, Status.of(error))

    def submit(self, entry: Entry) -> None:
        """Let a call wait for a run, or refuse it."""
        connection, stream_id, _, plan, arrived_s, deadline_s, _ = entry
        if plan.num_rows <= self.queue.room(deadline_s - arrived_s):
            self.queue.put(entry)
        else:
            self._reject(connection, [stream_id])

    def _reject(self, connection: Connection, stream_ids: list[int]) -> None:
        """Refuse calls that would wait in vain: cheaply, for there may be many."""
        respond, take = connection.http2.send_response, connection.calls.pop
        sieve = connection.sieve
        num_rejected: Counter[Any] = Counter()
        for stream_id in stream_ids:
            head = take(stream_id, None)
            num_rejected[head] += 1
            if sieve is not None and isinstance(head, Head):
                sieve.learn(stream_id, head)
            try:
                respond(stream_id, _NO_ROOM, end_stream=True)
            except http2.Error:
                pass  # the caller has left
        num_rejected.pop(None, None)
        self._count_rejected(num_rejected)
        if sieve is None and connection.can_sift and len(stream_ids) >= _MIN_REJECTED:
            connection.sieve = Sieve(
                connection.http2, self.queue, self.image_bytes, self.max_inline_images,
                _NO_ROOM_BLOCK,
            )  # fmt: skip

    def _count_rejected(self, num_rejected: Counter[Head]) -> None:
        for head, times in num_rejected.items():
            for _ in range(times):
                head.note_failure(_OVERLOADED)
            self.metrics.count(head.name, _REFUSED, times)

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

    def _cancel(self, connection: Connection, stream_id: int, now_s: float) -> None:
        """Forget a call whose caller has left."""
        call = connection.calls.pop(stream_id)
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
        for stream_id in list(connection.calls):
            self._cancel(connection, stream_id, 0.0)

    def drain(self, refusal: DigitsError, connections: Iterable[Connection]) -> None:
        """Refuse new calls of images, and those whose message has not arrived."""
        self.refusal = refusal
        reason = Status.of(refusal)
        for connection in connections:
            if connection.sieve is not None:
                connection.sieve.forget()
            waiting = {entry[1] for entry in connection.waiting}
            for stream_id, call in list(connection.calls.items()):
                if isinstance(call, Stream):
                    call.drain(reason)
                elif stream_id not in waiting:
                    self.refuse(connection, stream_id, call, reason)

    def is_due(self, now_s: float) -> bool:
        """Return whether `tick` has something to do by then, or may have at any time."""
        return bool(self.stalled or (self._timers and self._timers[0][0] <= now_s))

    def tick(self, now_s: float) -> None:
        """End the streams whose deadline has passed; resume those that waited for room."""
        self.has_new_timers = False
        while self._timers and self._timers[0][0] <= now_s:
            _, _, connection, stream_id, stream = heapq.heappop(self._timers)
            if connection.calls.get(stream_id) is stream:
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
        for stream_id, call in list(connection.calls.items()):
            if stream_id > connection.swept_stream_id:
                break
            if isinstance(call, Stream):
                if call.is_incomplete:
                    call.end(status.TOO_SLOW)
            elif stream_id not in waiting:
                self.refuse(connection, stream_id, call, status.TOO_SLOW)
        connection.swept_stream_id = max(connection.calls, default=connection.swept_stream_id)


def _finish(
    finish: Callable[[bytes | DigitsError], None],
    response: bytes | DigitsError,
    run: tuple[float, float],
) -> None:
    latest_run.set(run)  # of the loop's thread; it was set on the runner's
    finish(response)
