"""From HTTP/2's events to calls, and how calls end.

    headers ──▶ Head ──▶ its message in one piece ──▶ Queue ──▶ a run
                  ├────▶ Body, its message in parts ──▶ Queue, a runner thread, or an answer at once
                  └────▶ a stream

A call is read once, here, whatever its size.
"""

import heapq
import itertools
import math
from collections.abc import Callable, Hashable, Iterable
from functools import partial
from typing import Any, Protocol

import grpc

from serving.batching.request import Outcome, Request
from serving.classifier import Classifier
from serving.errors import DigitsError, Overloaded
from serving.protocols.method import ImagesStream, ImagesUnary, Replies
from serving.protocols.plan import Plan, frame
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
from serving.transports.h2.status import Status
from serving.transports.h2.streams import AnswerStream, ReplyStream
from serving.transports.h2.unary import Body

_TINY_BYTES = 64
"""Less data in a frame costs more to read than it is worth; clients send some, such as prefixes."""
_MAX_TINY_FRAMES = 1000
"""How many more of them than of other frames one connection may send."""
_OVERLOADED = Overloaded()
_REFUSED = grpc.StatusCode.RESOURCE_EXHAUSTED.name
_NO_ROOM = (*RESPONSE, *Status.of(_OVERLOADED).trailers)


class Call(Protocol):
    """A call that is more than its headers."""

    def receive(self, data: bytes, now_s: float, *, ended: bool) -> None:
        """Take more of what the caller sends."""

    def end(self, reason: Status) -> None:
        """End the call with a status."""

    def cancel(self) -> None:
        """Forget the call: the caller has left."""

    def drain(self, reason: Status) -> None:
        """End the call once it has been answered as far as it was accepted."""

    @property
    def is_pending(self) -> bool:
        """Whether something that was accepted has not been answered."""


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
            classifier: its batcher takes what is too large for that, its metrics count.
            limits: what peers may use.
            touch: has a connection flushed at the end of the round.
            post: has something done by the loop's thread, from any thread.
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
        self.num_held = 0
        """Bytes of messages that can't be used yet."""
        self.stalled: dict[AnswerStream, None] = {}
        """Streams that wait for room in a queue, the longest waiting first."""
        self._holding: dict[Call, int] = {}
        self._num_timers = itertools.count()
        self._timers: list[tuple[float, int, Connection, int, Call]] = []
        """(deadline, tie-breaker, connection, stream, call) of streams; a heap."""

    def check_tokens(self, connections: Iterable[Connection]) -> None:
        """Have headers read again where other tokens are valid now."""
        if self._heads.have_changed():
            for connection in connections:
                connection.headers = None

    def receive(self, connection: Connection, now_s: float) -> bool:
        """Take what a connection's last read brought.

        Returns:
            False if the connection is over.
        """
        calls, inline_images = connection.calls, self.max_inline_images
        known, head = connection.headers, connection.head
        image_bytes = self.image_bytes
        num_unread = connection.http2.queued_body_size()
        is_open = self.refusal is None and num_unread <= self.limits.max_unread_bytes
        consume = connection.http2.acknowledge_received_data
        entries: list[Entry] = []
        rejected: list[int] = []
        num_rows, room, measured = 0, 0.0, None
        event: Any  # its kind says what it has, and comparing kinds is the fastest way to ask
        for event in connection.http2.events():
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
                call = calls.get(stream_id)
                if call.__class__ is not Head or not event.end_stream:
                    self._receive_part(connection, event, now_s)
                    continue
                consume(len(data), stream_id)
                num_images = len(data) // image_bytes
                size = num_images * image_bytes
                plan = call.layouts.get(data[: len(data) - size])
                if plan is None or plan.num_rows != num_images or num_images > inline_images:
                    Body(self, connection, stream_id, call).receive(data, now_s, ended=True)
                    continue
                if call is not measured:
                    measured, late_s = call, now_s + call.timeout_s
                    room = self.queue.room(call.timeout_s) - num_rows
                if num_images > room:
                    rejected.append(stream_id)
                    continue
                room -= num_images
                num_rows += num_images
                entries.append((connection, stream_id, data[-size:], plan, now_s, late_s, None))
            elif kind is StreamClosed:
                if event.stream_id in calls:
                    self._cancel(connection, event.stream_id, now_s)
            elif kind is TrailersReceived:
                call = calls.get(event.stream_id)
                if isinstance(call, Head):
                    call = Body(self, connection, event.stream_id, call)
                if call is not None:
                    call.receive(b"", now_s, ended=True)
            elif kind is ConnectionClosed:
                return False
        if entries:
            self.queue.put_all(connection, entries, num_rows)
        if rejected:
            self._reject(connection, rejected)
        return True

    def _receive_part(self, connection: Connection, event: Any, now_s: float) -> None:
        """Take data that is no whole message of images."""
        stream_id, data = event.stream_id, event.data
        call = connection.calls.get(stream_id)
        if call is None:
            connection.consume(stream_id, len(data))
            return
        if len(data) < _TINY_BYTES and not event.end_stream:
            connection.num_tiny += 1
            if connection.num_tiny > _MAX_TINY_FRAMES:
                raise http2.Error("too many tiny frames")
        elif connection.num_tiny:
            connection.num_tiny -= 1
        if isinstance(call, Head):
            call = connection.calls[stream_id] = Body(self, connection, stream_id, call)
        call.receive(data, now_s, ended=event.end_stream)

    def _open(
        self, connection: Connection, stream_id: int, head: Head, now_s: float, *, ended: bool
    ) -> None:
        """Begin a call that is no unary one of images whose message is to come."""
        method, refusal = head.method, head.refusal
        self.touch(connection)
        if isinstance(refusal, HttpError):
            connection.refuse_http(stream_id, refusal)
            return
        if refusal is None and isinstance(method, ImagesUnary):
            if self.refusal is not None:
                refusal = Status.of(self.refusal)
            elif connection.http2.queued_body_size() > self.limits.max_unread_bytes:
                refusal = status.UNREAD
        if refusal is not None:
            self.refuse(connection, stream_id, head, refusal)
            return
        call: Call
        if isinstance(method, ImagesStream):
            call = AnswerStream(self, connection, stream_id, head)
        elif isinstance(method, Replies):
            call = ReplyStream(self, connection, stream_id, head)
        else:
            call = Body(self, connection, stream_id, head)
        connection.calls[stream_id] = call
        if head.timeout_s != math.inf and not isinstance(call, Body):
            timer = (now_s + head.timeout_s, next(self._num_timers), connection, stream_id, call)
            heapq.heappush(self._timers, timer)
        if ended:
            call.receive(b"", now_s, ended=True)

    def refuse(self, connection: Connection, stream_id: int, head: Head, reason: Status) -> None:
        """End a call that has had no answer yet with a status."""
        connection.calls.pop(stream_id, None)
        connection.refuse(stream_id, reason.trailers)
        self.metrics.count(head.name, reason.name)
        self.touch(connection)

    def fail(self, connection: Connection, stream_id: int, error: DigitsError) -> None:
        """End a call of images that waited with an error."""
        head = connection.calls[stream_id]
        assert isinstance(head, Head)
        head.note_failure(error)
        self.refuse(connection, stream_id, head, Status.of(error))

    def submit(self, entry: Entry) -> None:
        """Have a call wait for a run, or refuse it."""
        connection, stream_id, _, plan, arrived_s, late_s, _ = entry
        if plan.num_rows <= self.queue.room(late_s - arrived_s):
            self.queue.put(entry)
        else:
            self._reject(connection, [stream_id])

    def _reject(self, connection: Connection, stream_ids: list[int]) -> None:
        """Refuse calls that would wait in vain: cheaply, for there may be many."""
        respond, take = connection.http2.send_response, connection.calls.pop
        num_rejected: dict[Any, int] = {}
        for stream_id in stream_ids:
            head = take(stream_id, None)
            num_rejected[head] = num_rejected.get(head, 0) + 1
            try:
                respond(stream_id, _NO_ROOM, end_stream=True)
            except http2.Error:
                pass  # the caller has left
        num_rejected.pop(None, None)
        for head, times in num_rejected.items():
            for _ in range(times):
                head.note_failure(_OVERLOADED)
            self.metrics.count(head.name, _REFUSED, times)

    def hold(self, call: Call, num_bytes: int) -> None:
        """Note what a call holds of messages that it can't use yet; refuse the largest if needed.

        All connections share one budget: else a thousand callers, each within its own limits, would
        take all memory.
        """
        self.num_held += num_bytes - self._holding.pop(call, 0)
        if num_bytes:
            self._holding[call] = num_bytes
        if self.num_held > self.limits.max_held_bytes:
            largest = sorted(self._holding, key=self._holding.__getitem__, reverse=True)
            for victim in largest:  # down to three quarters, so that this is not done at each byte
                if self.num_held <= self.limits.max_held_bytes * 3 // 4:
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
        """Have a runner thread take images.

        Args:
            pixels: the bytes of N images.
            plan: how they are answered.
            caller: whose turn it takes.
            deadline_s: in monotonic seconds.
            finish: called on the loop's thread, with the framed response or why there is none.

        Raises: what `Batcher.put` raises.
        """

        def take_outcome(outcome: Outcome) -> None:
            response = outcome if isinstance(outcome, DigitsError) else frame(plan.respond(outcome))
            self.post(partial(finish, response))

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
        """Refuse new calls, and those whose message has not arrived."""
        self.refusal = refusal
        reason = Status.of(refusal)
        for connection in connections:
            waiting = {entry[1] for entry in connection.waiting}
            for stream_id, call in list(connection.calls.items()):
                if not isinstance(call, Head):
                    call.drain(reason)
                elif call.is_plain and stream_id not in waiting:
                    self.refuse(connection, stream_id, call, reason)

    @property
    def has_timers(self) -> bool:
        """Whether `tick` has something to wait for."""
        return bool(self._timers or self.stalled)

    def tick(self, now_s: float) -> None:
        """End the streams whose deadline has passed, and go on with those that waited for room."""
        while self._timers and self._timers[0][0] <= now_s:
            _, _, connection, stream_id, call = heapq.heappop(self._timers)
            if connection.calls.get(stream_id) is call:
                call.end(status.LATE)
        for _ in range(len(self.stalled)):
            if not self.queue.has_room:
                break
            stream = next(iter(self.stalled))
            del self.stalled[stream]
            stream.go_on(now_s)

    def sweep(self, connection: Connection) -> None:
        """End the calls whose message has not arrived since the last sweep but one."""
        waiting = {entry[1] for entry in connection.waiting}
        for stream_id, call in list(connection.calls.items()):
            if stream_id > connection.swept:
                break
            if isinstance(call, Head) and stream_id not in waiting:
                self.refuse(connection, stream_id, call, status.TOO_SLOW)
            elif isinstance(call, Body) and not call.is_pending:
                call.end(status.TOO_SLOW)
        connection.swept = max(connection.calls, default=connection.swept)
