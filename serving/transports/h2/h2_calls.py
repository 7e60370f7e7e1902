"""From HTTP/2's events to calls, and how calls end.

    headers ──▶ Headers ──▶ one message of rows, in one piece ──▶ a Batcher
                  └────▶ Stream, anything else ──▶ a Batcher, or an answer at once

Each message is read once, here or in its Stream.
"""

import math
from collections.abc import Iterable
from typing import Any

from serving.batching.queue import ResponseEncoder
from serving.errors import DigitsError
from serving.http2 import events
from serving.http2.headers import Block
from serving.http2.server_side import NotHttp2
from serving.protocols.method import BatchedUnary
from serving.protocols.status import Status
from serving.transports.connections import Calls
from serving.transports.h2 import trailers
from serving.transports.h2.call_headers import HeaderParser, Headers, HttpError
from serving.transports.h2.context import Context
from serving.transports.h2.h2_peer import Connection
from serving.transports.h2.kinds import KINDS, BatchedStreamCall
from serving.transports.h2.logged_connection import LoggedConnection
from serving.transports.h2.stream import Stream

_MAX_EXPECTED_BYTES = 16 << 10
"""The longest messages that are recognised by their bytes: one frame, read in one piece."""


class H2Calls(Calls):
    """Reads calls and routes them; used by the loop's thread only."""

    def __init__(self, heads: HeaderParser, context: Context) -> None:
        """Read headers by `heads`; `context` is shared by calls."""
        super().__init__(heads.tokens)
        self._heads = heads
        self.context = context

    def forget_layouts(self) -> None:
        """Have all messages parsed again."""
        super().forget_layouts()
        self._heads.forget_layouts()

    def receive(self, connection: Connection, data: bytes, now_s: float) -> None:
        """See `Calls`; raises Http2Error where the peer broke the protocol."""
        streams, connection.active_s = connection.streams, now_s
        try:
            found = connection.http2.receive(data, now_s)
        except NotHttp2:
            connection.refuse_protocol()
            raise
        for kind, stream, value, ended in found:
            if kind == events.CALLS:
                block, encoder, calls = value
                head = block.call
                if head is None:
                    head = self._read(connection, block)
                    for stream in calls:  # a later frame may have made its state an object
                        state = streams.get(stream)
                        if state is not None and state.call is None:
                            state.call = head
                if head.refusal is None:
                    self._queue_calls(connection, head, encoder, calls, calls.values(), now_s)
                else:
                    for stream in calls:
                        self._open(connection, stream, head, now_s, ended=True)
                continue
            state = streams.get(stream)
            if kind == events.RESET:
                self._cancel(connection, value[1], now_s)
            elif kind == events.GOAWAY:
                connection.is_leaving = True
            elif state is None:  # over in the meantime
                continue
            elif kind == events.HEADERS:
                head = state.call = self._read(connection, value)
                if head.is_plain and not ended and self._refusal is None:
                    continue
                self._open(connection, stream, head, now_s, ended=ended)
            elif kind == events.DATA:
                self._take(connection, stream, state, value, now_s, ended=ended)
            elif kind == events.MESSAGES:
                self._take_messages(connection, stream, state.call, value, now_s, ended=ended)
            else:
                self._receive_part(connection, stream, b"", now_s, ended=True)

    def _read(self, connection: Connection, block: Block) -> Headers:
        if block.call is None:
            block.call = self._heads.get(block)
            connection.trusted |= block.call.trusted
            block.shrink()
        return block.call  # type: ignore[no-any-return]

    def _take(
        self, connection: Connection, stream: bytes, state: Any, data: bytes, now_s: float,
        *, ended: bool
    ) -> None:  # fmt: skip
        """Take data of a call: a whole message of rows in a known layout, or anything else."""
        call = state.call
        is_stream = isinstance(call, Stream)
        if is_stream and call.reader.data:
            call.receive(data, now_s, ended=ended)
            return
        head = call.head if is_stream else call
        found = head.prefixes.find_framed(data) if head is not None else None
        if found is not None:
            start, encoder = found
            block = state.block
            is_repeated = block.is_repeated or block.kind.is_repeated or is_stream
            if is_repeated and len(data) <= _MAX_EXPECTED_BYTES and self._refusal is None:
                layout = data[:start], len(data) - start
                connection.http2.expect(block, layout, encoder, calls=not is_stream)
            if ended and not is_stream:
                self._queue_calls(connection, call, encoder, [stream], [data[start:]], now_s)
                return
        self._receive_part(connection, stream, data, now_s, ended=ended)

    def _take_messages(
        self, connection: Connection, stream: bytes, call: Headers | Stream, value: Any,
        now_s: float, *, ended: bool
    ) -> None:  # fmt: skip
        """Take frames of a stream that were recognised as messages."""
        (prefix, size), encoder, messages = value
        if ended and isinstance(call, Headers):
            self._queue_calls(connection, call, encoder, [stream], messages, now_s)
            return
        number = 0
        if isinstance(call, BatchedStreamCall):
            number = call.run_messages(encoder, messages, len(prefix) + size, now_s, ended=ended)
        for at, message in enumerate(messages[number:], number + 1):
            is_last = ended and at == len(messages)
            self._receive_part(connection, stream, prefix + message, now_s, ended=is_last)

    def _queue_calls(
        self, connection: Connection, head: Headers, encoder: ResponseEncoder,
        streams: Iterable[bytes], messages: Iterable[bytes], now_s: float,
    ) -> None:  # fmt: skip
        """Queue calls of one kind that have come whole, as far as there is room."""
        context = self.context
        reason = self._reason_to_refuse(connection)
        if reason is not None:
            for stream in streams:
                context.refuse(connection, stream, head, reason)
            return
        deadline_s = now_s + head.timeout_s
        context.submit(connection, head, encoder, [*streams], [*messages], now_s, deadline_s)

    def _reason_to_refuse(self, connection: Connection) -> Status | None:
        """Return why calls of rows are refused on a connection; None if they are not."""
        if self._refusal is not None:
            return Status.of(self._refusal)
        is_unread = connection.http2.blocked and connection.is_unread(self.context.limits)
        return trailers.UNREAD if is_unread else None

    def _receive_part(
        self, connection: Connection, stream: bytes, data: bytes, now_s: float, *, ended: bool
    ) -> None:
        """Take data, or the end, of a call that is no message of rows in a known layout."""
        call = connection.call(stream)
        if isinstance(call, Headers):
            call = self._stream(connection, stream, call, now_s)
        if call is not None:
            call.receive(data, now_s, ended=ended)

    def _stream(self, connection: Connection, stream: bytes, head: Headers, now_s: float) -> Stream:
        """Make a call a stream, which ends at its deadline."""
        call = KINDS[head.method.__class__](self.context, connection, stream, head)
        connection.streams[stream].call = call
        if head.timeout_s != math.inf:
            self.context.end_at(now_s + head.timeout_s, connection, stream, call)
        return call

    def _open(
        self, connection: Connection, stream_id: bytes, head: Headers, now_s: float, *, ended: bool
    ) -> None:
        """Begin any other call as a stream, or refuse it."""
        refusal = head.refusal
        if isinstance(refusal, HttpError):
            connection.http2.refuse([stream_id], refusal.headers, refusal.text)
            self.context.schedule_flush(connection)
            return
        if refusal is None and isinstance(head.method, BatchedUnary):
            refusal = self._reason_to_refuse(connection)
        if refusal is not None:
            self.context.refuse(connection, stream_id, head, refusal)
            return
        self._stream(connection, stream_id, head, now_s)
        if ended:
            self._receive_part(connection, stream_id, b"", now_s, ended=True)

    def _cancel(self, connection: Connection, state: Any, now_s: float) -> None:
        """Forget a call whose caller has left, unless its answer was on its way."""
        call = state.call
        if call is None:
            if state.trailers is not None:
                return
            call = self._read(connection, state.block)  # it came and went in one read
        if isinstance(call, Headers):
            connection.gave_up_s = now_s
            self.context.metrics.count(call.name, "CANCELLED")
        else:
            call.cancel()

    def forget(self, connection: Connection) -> None:
        """Cancel all calls of a connection that is over."""
        for batcher in self.context.router.batchers:
            batcher.forget(connection)
        streams = list(connection.streams.values())
        connection.streams.clear()
        connection.http2.blocked.clear()
        for state in streams:
            self._cancel(connection, state, 0.0)
        if isinstance(connection.http2, LoggedConnection):
            connection.http2.end_calls()

    def drain(self, refusal: DigitsError, connections: Iterable[Connection]) -> None:
        """Refuse new batched calls, and those whose message has not arrived."""
        self._refusal = refusal
        reason = Status.of(refusal)
        for connection in connections:
            connection.forget_known()
            for stream_id, call in self.context.not_queued(connection):
                if isinstance(call, Stream):
                    call.drain(reason)
                else:
                    self.context.refuse(connection, stream_id, call, reason)

    def is_due(self, now_s: float) -> bool:
        """See `Calls`."""
        return self.context.is_due(now_s)

    def tick(self, now_s: float) -> None:
        """See `Calls`."""
        self.context.tick(now_s)

    def sweep(self, connection: Connection) -> None:
        """End the calls whose message has not arrived since the last sweep but one."""
        for stream_id, call in self.context.not_queued(connection):
            if stream_id > connection.swept_stream:
                continue
            if not isinstance(call, Stream):
                self.context.refuse(connection, stream_id, call, trailers.TOO_SLOW)
            elif call.is_incomplete:
                call.end(trailers.TOO_SLOW)
        connection.swept_stream = max(connection.streams, default=connection.swept_stream)
