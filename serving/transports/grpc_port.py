"""The gRPC port on HTTP/2: from events to calls, and how calls end.

    headers ──▶ CallHeaders ──▶ one message of rows, in one piece ──▶ a Batcher
                  └────▶ GrpcCall, anything else ──▶ its method's coroutine

Calls of the first kind have no object: their stream's `call` is the `CallHeaders` that they share
with others, and they stay together in a `Group` until they are answered. Each message is read once,
here or in its `GrpcCall`.
"""

import socket
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from serving.batching.run import Group, Ran, ResponseEncoder
from serving.errors import Overloaded, ServingError
from serving.http2 import Pieces, ServerConnection, events
from serving.http2.frames import ErrorCode
from serving.http2.headers import SharedHeaders
from serving.http2.recogniser import recognise
from serving.protocols.method import BatchedUnary
from serving.protocols.status import Status, StatusCode
from serving.router import Router
from serving.system.host import Host
from serving.telemetry.metrics import NO_MODEL, ModelLabel
from serving.transports import grpc_headers as headers
from serving.transports.grpc_call import GrpcCall
from serving.transports.grpc_headers import CallHeaders, HeaderParser, NotGrpc, trailers_of
from serving.transports.loop import Loop
from serving.transports.peer import Peer, peer_of
from serving.transports.pools import ThreadEach
from serving.transports.port import Port
from serving.transports.port_limits import PortLimits

if TYPE_CHECKING:
    from serving.telemetry.access_log import AccessLog, LoggedCall

_MAX_EXPECTED_BYTES = 16 << 10
"""The longest messages that are recognised by their bytes: one frame, read in one piece."""
_SHARE_UNREAD = 0.25
"""How much of its time a call may have waited before it was read, as far as is known. A connection
that is never read to its end holds calls that are late before they are read: run in turn, all
would be late for ever, while refusing them catches up with those that have just come."""
_NOT_HTTP2 = b"this port speaks gRPC, over HTTP/2 only\n"
_HTTP1_RESPONSE = (
    b"HTTP/1.1 505 HTTP Version Not Supported\r\nconnection: close\r\n"
    b"content-type: text/plain\r\ncontent-length: %d\r\n\r\n%s" % (len(_NOT_HTTP2), _NOT_HTTP2)
)
_REFUSED = StatusCode.RESOURCE_EXHAUSTED.name
_RECOGNISE = recognise(headers.VARYING)
_NO_ROOM = (*headers.RESPONSE, *trailers_of(Status.of(Overloaded())))


class H2Port(Port):
    """Reads calls, routes and answers them; used by the loop's thread only."""

    def __init__(
        self,
        router: Router,
        header_parser: HeaderParser,
        loop: Loop,
        limits: PortLimits,
        host: Host,
        log: "AccessLog | None",
    ) -> None:
        """Connect the parts.

        Args:
            router: the models.
            header_parser: reads headers.
            loop: whose thread this is.
            limits: of peers.
            host: clock, network and random numbers.
            log: records calls; None if nothing does.
        """
        super().__init__(host, limits, header_parser.tokens)
        self.router = router
        self.metrics = router.metrics
        self.log = log
        self.clock, self.post, self.calls = loop.clock, loop.post, loop.calls
        self.pool = ThreadEach(host, loop.post)
        self._header_parser = header_parser

    def new_engine(self, sock: socket.socket) -> ServerConnection:
        engine = ServerConnection(
            self.limits.http2, headers.RESPONSE, headers.OK, _HTTP1_RESPONSE, headers.COUNTING
        )
        return engine.recognise(_RECOGNISE)

    # From events to calls

    def receive(self, peer: Peer, data: bytes, now_s: float) -> None:
        """Process bytes of a connection; raises Http2Error where the peer broke the protocol."""
        streams, peer.active_s, has_new = peer.streams, now_s, False
        for event in peer.engine.receive(data, now_s):
            if isinstance(event, events.CallsReceived):
                has_new = has_new or event.shared.call is None
                self._take_calls(peer, event, now_s, has_new=has_new)
                continue
            if isinstance(event, events.StreamReset):
                self._cancel(peer, event.state, now_s)
                continue
            if isinstance(event, events.GoAway):
                peer.note_leaving()
                continue
            state = streams.get(event.stream)
            if state is None:  # a later frame of this read has reset it
                continue
            if isinstance(event, events.HeadersReceived):
                has_new = has_new or event.block.call is None
                self._take_headers(peer, event, state, now_s)
            elif isinstance(event, events.DataReceived):
                self._take(peer, event.stream, state, event.data, now_s, ended=event.is_end)
            elif isinstance(event, events.MessagesReceived):
                self._take_messages(peer, event, state.call, now_s)
            else:
                self._receive_part(peer, event.stream, b"", now_s, ended=True)

    def _take_calls(
        self, peer: Peer, event: events.CallsReceived, now_s: float, *, has_new: bool
    ) -> None:
        """Take calls that have come whole; `has_new` if headers of this read are new."""
        encoder, calls = event.token, event.messages
        call_headers = self._read(peer, event.shared)
        if has_new:
            # A later frame of the same read, such as a window update, may have made a stream's
            # state an object of its own before its block was read.
            for each in calls:
                state = peer.streams.get(each)
                if state is not None and state.call is None:
                    state.call = call_headers
        if call_headers.refusal is None:
            timeouts = event.values.get(b"grpc-timeout") if event.values else None
            self._queue_calls(peer, call_headers, encoder, calls, now_s, timeouts)
            return
        for each in calls:
            self._open(peer, each, call_headers, now_s, ended=True)

    def _take_headers(
        self, peer: Peer, event: events.HeadersReceived, state: Any, now_s: float
    ) -> None:
        """Begin a call."""
        logged = self._begin_log(peer, event.block)
        call_headers = state.call = self._read(peer, event.block)
        # A plain call has no object before its message comes, most often in this very read.
        is_simple = call_headers.is_plain and not event.is_end and self.refusal is None
        if not is_simple or logged is not None:
            self._open(peer, event.stream, call_headers, now_s, ended=event.is_end, logged=logged)

    def _read(self, peer: Peer, block: SharedHeaders) -> CallHeaders:
        call_headers: CallHeaders | None = block.call
        if call_headers is None:
            call_headers = block.call = self._header_parser.get(block)
            peer.trusted |= call_headers.trusted
            if not self.router.keeps_headers:
                block.shrink()
        return call_headers

    def _begin_log(self, peer: Peer, block: SharedHeaders) -> "LoggedCall | None":
        if self.log is None:
            return None
        fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in block.fields}
        return self.log.begin(fields.get(":path", ""), peer_of(peer.socket), fields)

    def _take(
        self, peer: Peer, stream: bytes, state: Any, data: bytes, now_s: float, *, ended: bool
    ) -> None:
        """Take data of a call: a whole message of rows in a known layout, or anything else."""
        call = state.call
        is_call = isinstance(call, GrpcCall)
        if is_call and (call.data or self.log is not None):
            call.receive(data, ended=ended)
            return
        call_headers = call.call_headers if is_call else call
        if call_headers is None:
            return
        found = call_headers.known.find_framed(data)
        if found is not None:
            start, encoder = found
            block = state.block
            # Not at the first time: a pattern takes milliseconds to compile (`expect`).
            is_repeated = block.is_repeated or block.kind.is_repeated or is_call
            if is_repeated and len(data) <= _MAX_EXPECTED_BYTES and self.refusal is None:
                layout = data[:start], len(data) - start
                peer.engine.expect(block, layout, encoder, calls=not is_call)
            if ended and not is_call:
                self._queue_calls(peer, call, encoder, {stream: data[start:]}, now_s)
                return
        self._receive_part(peer, stream, data, now_s, ended=ended)

    def _take_messages(
        self,
        peer: Peer,
        event: events.MessagesReceived,
        call: CallHeaders | GrpcCall | None,
        now_s: float,
    ) -> None:
        """Take frames of a stream that were recognised as messages."""
        stream, (prefix, size), encoder, messages, ended = event
        number = 0
        if isinstance(call, GrpcCall):
            number = call.run_messages(encoder, messages, len(prefix) + size, ended=ended)
        elif ended and isinstance(call, CallHeaders):
            self._queue_calls(peer, call, encoder, {stream: messages[0]}, now_s)
            return
        # Of a call that has been answered meanwhile, they are dropped.
        for at, message in enumerate(messages[number:], number + 1):
            is_last = ended and at == len(messages)
            self._receive_part(peer, stream, prefix + message, now_s, ended=is_last)

    def _queue_calls(
        self,
        peer: Peer,
        call_headers: CallHeaders,
        encoder: ResponseEncoder,
        calls: dict[bytes, bytes],
        now_s: float,
        timeouts: Sequence[bytes] | None = None,
    ) -> None:
        """Queue calls that have come whole, as far as there is room; each may have its timeout."""
        reason = self._reason_to_refuse(peer)
        if reason is not None:
            for stream in calls:
                self.refuse(peer, stream, call_headers, reason)
            return
        streams, messages = [*calls], [*calls.values()]
        deadline_s = now_s + call_headers.timeout_s
        if now_s - peer.behind_s > call_headers.timeout_s * _SHARE_UNREAD:
            self._reject(peer, call_headers, streams, encoder.target.label)
            return
        group = Group(peer, streams, messages, encoder, self, now_s, deadline_s)
        if timeouts is not None:
            group.deadlines_s = [now_s + headers.read_timeout_s(timeout) for timeout in timeouts]
            group.deadline_s = min(group.deadlines_s)
        number = encoder.target.submit(group)
        if number < len(streams):
            self._reject(peer, call_headers, streams[number:], encoder.target.label)

    def _reason_to_refuse(self, peer: Peer) -> Status | None:
        """Return why calls of rows are refused on a connection; None if they are not."""
        if self.refusal is not None:
            return Status.of(self.refusal)
        engine = peer.engine  # too many answers wait for its peer?
        is_unread = engine.blocked and engine.num_unsent() > self.limits.max_unread_bytes
        return headers.UNREAD if is_unread else None

    def _receive_part(
        self, peer: Peer, stream: bytes, data: bytes, now_s: float, *, ended: bool
    ) -> None:
        """Take data, or the end, of a call that is no message of rows in a known layout."""
        state = peer.streams.get(stream)
        call = None if state is None else state.call
        if isinstance(call, CallHeaders):
            call = self._begin(peer, stream, call, now_s)
        if call is not None:
            call.receive(data, ended=ended)

    def _begin(
        self,
        peer: Peer,
        stream: bytes,
        call_headers: CallHeaders,
        now_s: float,
        logged: "LoggedCall | None" = None,
    ) -> GrpcCall:
        """Make a call one with an object, which ends at its deadline."""
        call = GrpcCall(self, peer, stream, call_headers, now_s)
        call.logged = logged
        peer.streams[stream].call = call
        self.calls.end_at_deadline(call)
        if not call.takes_one:  # of the others the message comes first
            call.start(call_headers.method.handle(call))  # type: ignore[union-attr]
        return call

    def _open(
        self,
        peer: Peer,
        stream: bytes,
        call_headers: CallHeaders,
        now_s: float,
        *,
        ended: bool,
        logged: "LoggedCall | None" = None,
    ) -> None:
        """Begin any other call, or refuse it."""
        refusal = call_headers.refusal
        if isinstance(refusal, NotGrpc):
            peer.engine.refuse([stream], refusal.headers, refusal.text)
            self.schedule_flush(peer)
            return
        if refusal is None and isinstance(call_headers.method, BatchedUnary):
            refusal = self._reason_to_refuse(peer)
        if refusal is not None and logged is None:
            self.refuse(peer, stream, call_headers, refusal)
            return
        call = self._begin(peer, stream, call_headers, now_s, logged)
        if refusal is not None:
            call.end(refusal)
        elif ended:
            call.receive(b"", ended=True)

    # How calls without an object end

    def answer(self, group: Group, responses: Sequence[bytes | Pieces], run: Ran) -> None:
        peer: Peer = group.caller  # type: ignore[assignment]
        if responses and isinstance(responses[0], Pieces):
            try:
                for each in responses:
                    self.calls.budget.hold_answer(each)
            except Overloaded as err:
                self.fail(group, err)
                return
        peer.engine.answer(group.streams, responses)
        self.schedule_flush(peer)

    def fail(self, group: Group, error: ServingError) -> None:
        peer: Peer = group.caller  # type: ignore[assignment]
        for stream in group.streams:
            state = peer.streams.get(stream)
            if state is not None and isinstance(state.call, CallHeaders):
                self.refuse(peer, stream, state.call, Status.of(error), error.model or NO_MODEL)

    def refuse(
        self,
        peer: Peer,
        stream: bytes,
        call_headers: CallHeaders,
        reason: Status,
        model: ModelLabel = NO_MODEL,
    ) -> None:
        """End a call that has had no answer with a status, unless its caller has left."""
        if stream in peer.streams:
            peer.engine.refuse([stream], (*headers.RESPONSE, *trailers_of(reason)))
            self.metrics.count(call_headers.name, reason.code.name, model=model)
            self.schedule_flush(peer)

    def _reject(
        self, peer: Peer, call_headers: CallHeaders, streams: Sequence[bytes], model: ModelLabel
    ) -> None:
        """Refuse calls that would wait in vain: cheaply, for there may be many."""
        num_open = sum(map(peer.streams.__contains__, streams))
        peer.engine.refuse(streams, _NO_ROOM)
        self.metrics.count(call_headers.name, _REFUSED, num_open, model)

    def _cancel(self, peer: Peer, state: Any, now_s: float) -> None:
        """Forget a call whose caller has left, unless its answer was on its way."""
        call = state.call
        if call is None:
            if state.trailers is not None:
                return
            call = self._read(peer, state.block)  # it came and went in one read
        if isinstance(call, CallHeaders):
            peer.gave_up_s = now_s
            self.metrics.count(call.name, "CANCELLED")
        else:
            if call.is_running:
                peer.gave_up_s = now_s
            call.cancel()

    # All calls of a connection

    def headers_of(self, peer: Peer, stream: bytes) -> Iterable[tuple[str, str]]:
        state = peer.streams.get(stream)
        fields = () if state is None or state.block is None else state.block.fields
        return ((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields)

    def _not_queued(self, peer: Peer) -> list[tuple[bytes, Any]]:
        """Return the streams of a connection, and its calls whose message has not arrived."""
        queued = set().union(*(each.entry.streams_of(peer) for each in self.router.served))
        calls = [(s, state.call) for s, state in peer.streams.items() if state.call]
        return [(s, call) for s, call in calls if s not in queued or isinstance(call, GrpcCall)]

    def num_unsent(self, peer: Peer) -> int:
        return len(peer.output) + sum(
            len(state.unsent)
            for state in peer.engine.blocked.values()
            if not (isinstance(state.call, GrpcCall) and state.call.is_watch)
        )

    def has_accepted(self, peer: Peer) -> bool:
        return any(
            isinstance(state.call, CallHeaders) or state.call.is_accepted
            for state in peer.streams.values()
            if state.call is not None
        )

    def ping(self, peer: Peer) -> bool:
        peer.engine.ping()
        return True

    def forget(self, peer: Peer) -> None:
        for each in self.router.served:
            each.entry.forget(peer)
        states = list(peer.streams.values())
        peer.streams.clear()
        peer.engine.blocked.clear()
        peer.engine.due.clear()
        for state in states:
            self._cancel(peer, state, 0.0)

    def drain(self, refusal: ServingError) -> None:
        self.refusal = refusal
        reason = Status.of(refusal)
        for peer in self:
            peer.engine.forget()
            for stream, call in self._not_queued(peer):
                if isinstance(call, GrpcCall):
                    call.drain(reason)
                else:
                    self.refuse(peer, stream, call, reason)

    def sweep_calls(self, peer: Peer) -> None:
        """End calls whose message has not arrived, or whose answer is not read, since the last."""
        self._reset_unread(peer)
        for stream, call in self._not_queued(peer):
            if stream > peer.swept_stream:
                continue
            if not isinstance(call, GrpcCall):
                self.refuse(peer, stream, call, headers.TOO_SLOW)
            elif self.calls.budget.is_waiting(call):
                call.refuse_bytes()
            elif call.is_incomplete and self._is_overdue(call):
                call.end(headers.TOO_SLOW)
        peer.swept_stream = max(peer.streams, default=peer.swept_stream)

    def _reset_unread(self, peer: Peer) -> None:
        """Reset the streams whose windows stay shut, if an answer of others has found no room."""
        before, peer.swept_unsent = peer.swept_unsent, {}
        is_needed = self.clock() - self.calls.budget.refused_s < 2 * self.limits.message_s
        for stream, state in [*peer.engine.blocked.items()]:
            if not isinstance(state.unsent, Pieces):
                continue
            num_bytes = peer.swept_unsent[stream] = len(state.unsent)
            if is_needed and num_bytes == before.get(stream):
                peer.engine.reset(stream, ErrorCode.CANCEL)
                self._cancel(peer, state, self.clock())
                self.schedule_flush(peer)

    def _is_overdue(self, call: GrpcCall) -> bool:
        """Return whether a message had time enough, since the call was let in if it had to wait."""
        return self.clock() - self.calls.budget.admitted_s(call) > self.limits.message_s
