"""An HTTP/1.1 port: from bytes of connections to requests, and answers back, in order.

    bytes ──▶ http1: head ──▶ RoutedRequest ──▶ body ──▶ Exchange ──▶ its handler

A connection has one request in progress; further ones wait.
"""

import logging
import math
import socket
from collections import deque
from collections.abc import Callable, Collection, Iterable, Sequence
from copy import copy
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from serving.batching.run import Group, Ran, ResponseEncoder
from serving.errors import DeadlineExceeded, Overloaded, ServingError
from serving.http1.requests import (
    LAST_CHUNK,
    BadRequest,
    Request,
    RequestReader,
    encode_chunk,
)
from serving.http2 import Pieces
from serving.protocols.known import KnownRequest, ValuesPlace
from serving.router import Router
from serving.system.host import Host
from serving.telemetry.logs import REQUEST_ID
from serving.transports.calls import LoopCall, paused, submit
from serving.transports.http_routing import (
    Answer,
    App,
    HttpError,
    RoutedRequest,
    as_event,
    name_of,
    problem,
)
from serving.transports.loop import Loop
from serving.transports.peer import Peer, State, peer_of
from serving.transports.pools import Pool
from serving.transports.port import Port
from serving.transports.port_limits import PortLimits

if TYPE_CHECKING:
    from serving.security.tls import Tls
    from serving.telemetry.access_log import AccessLog

_log = logging.getLogger(__name__)

_MAX_AHEAD_BYTES = 64 << 10
"""Bytes that a peer may send ahead of an answer; it is not read until they are fewer."""
_MAX_UNSENT_BYTES = 64 << 10
"""Answers that a peer has not read, past which its next request waits."""
_TURN_BYTES = 1 << 20
"""Bytes of a long answer that are sent before others have their turn."""
_MAX_REPEATED_BYTES = 16 << 10
"""The longest requests that are recognised as repeated ones: they come in one read, and the budget
of bytes does not count them."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_SLOW = HttpError(HTTPStatus.BAD_REQUEST, "the body did not arrive in time")
_NO_ROOM = Overloaded("other requests' bodies leave no room for this one")
_GRACE_S = 1.0
"""How long a drain waits for the requests that callers send before they know of it."""
_COMPLAINT_S = 60.0
"""The least time between two log lines about peers that send malformed requests."""


class Exchange(LoopCall):
    """A request whose head has come; `start` begins once its body has."""

    __slots__ = ("_waits_for_reader", "body", "has_begun", "plan")

    def __init__(self, port: Any, peer: Peer, plan: RoutedRequest, stream: int) -> None:
        """Prepare; the port sets the deadline and the body once it knows them."""
        super().__init__(port, peer, stream, float("inf"))
        self.plan = plan
        """Its routing."""
        self.body = b""
        self.has_begun = False
        """Whether the head of the answer was sent, and parts of it come."""
        self._waits_for_reader = False

    async def send(self, part: bytes, kind: str) -> None:
        """Send a part of the answer, and wait while the caller does not read.

        The `Answer` that the handler returns then is the last part; an error is one that says so.

        Args:
            part: the bytes.
            kind: the type of the whole.
        """
        self.port.send_part(self, part, kind)
        while self.port.is_unread(self.peer):
            await paused(self._wait_for_reader)

    def _wait_for_reader(self) -> None:
        self.peer.unread[self.peer.engine] = None
        self._waits_for_reader = True

    def resume_sending(self) -> None:
        """Go on, now that parts were read, if it waits for that."""
        if self._waits_for_reader:
            self._waits_for_reader = False
            self.resume()

    def expect_repeats(
        self,
        place: ValuesPlace,
        encoder: ResponseEncoder,
        read: Callable[[ValuesPlace, bytes], bytes | None] | None = None,
    ) -> None:
        """Have later requests run at once that repeat this one but for its values.

        Args:
            place: where these stand in the body.
            encoder: writes their answers, each as `encode_rest` does.
            read: reads the rows of a body in which values are a text.
        """
        plan, reader = self.plan, self.peer.engine.reader
        size, head = len(reader.head) + len(self.body), reader.around_length
        if plan.request.num_bytes != len(self.body) or plan.is_packed:  # in chunks, compressed
            return
        if plan.timeout_s < math.inf or plan.request.is_last or self.port.log is not None:
            return
        if not reader.head or size > _MAX_REPEATED_BYTES or (read is not None and head is None):
            return
        encoder = copy(encoder)
        encoder.method = plan.name  # counted by its runs
        if read is None:
            place, head = place._replace(before=reader.head + place.before), None
        plan.repeat = KnownRequest(place, encoder, head, read)

    def close(self) -> None:
        super().close()
        self.body = b""

    def _returned(self, outcome: Answer) -> None:
        self.port.reply(self, outcome)

    def _raised(self, error: Exception) -> None:
        self.port.fail_request(self, error)

    def resume(self) -> None:
        if self._steps is not None:
            self._step(self._steps.send, None)

    def resume_reading(self) -> None:
        self.port.resume_reading(self)

    def expire(self) -> None:
        self.port.fail_request(self, DeadlineExceeded())

    def refuse_bytes(self) -> None:
        self.port.fail_request(self, _NO_ROOM)


async def _unpacked(call: Exchange) -> Answer:
    """Answer a request whose body is compressed."""
    call.body = await call.unpacked(call.body, call.plan.max_bytes)
    return await call.plan.handler(call)


class ConnectionPhase:
    """How far a connection is with its requests. No enum, as `State` says."""

    HEAD = 0
    """A head is on its way, for as long as a handshake may take."""
    IDLE = 1
    """Every request was answered, and nothing has come since."""
    BODY = 2
    """A head has come."""
    RUNNING = 3
    """A request has come whole, and is not answered."""
    QUEUED = 4
    """It was answered; bytes that were sent ahead wait for their turn."""


class HttpEngine:
    """One peer's HTTP/1.1: see `PeerEngine`."""

    def __init__(self) -> None:
        self.reader = RequestReader()
        self.phase: int = ConnectionPhase.HEAD
        self.stream = 0
        """How many requests have begun."""
        self.streams: set[int] = set()
        """The number of the request in progress, if there is one."""
        self.call: Exchange | None = None
        """The request in progress, unless it is a repeated one."""
        self.repeated: RoutedRequest | None = None
        """The routing of a repeated request in progress, which has no `call`."""
        self.has_grace = False
        """Whether its next request is answered although the server drains: it may be on its way."""
        self.recent: RoutedRequest | None = None
        """The routing of the last request: the same again if its head is."""
        self._answers: deque[bytes | Pieces] = deque()
        self.due: Collection[bytes | Pieces] = self._answers
        """The answers of which there is more to send."""
        self.num_unsent = 0
        """Bytes of answers that wait for the end of the round, or of several."""

    @property
    def is_established(self) -> bool:
        return self.phase != ConnectionPhase.HEAD

    def begin(self) -> int:
        """Begin a request; return its number."""
        self.stream += 1
        self.streams.add(self.stream)
        return self.stream

    def end(self) -> None:
        """End the request in progress."""
        self.call = self.repeated = None
        self.streams.clear()
        self.phase = ConnectionPhase.QUEUED if self.reader.num_waiting else ConnectionPhase.IDLE

    def write(self, answer: bytes | Pieces) -> None:
        """Have an answer, or a part of one, sent at the end of the round; a long one in parts."""
        self._answers.append(answer)
        self.num_unsent += len(answer)

    def data_to_send(self) -> bytes:
        answers = self._answers
        if len(answers) == 1 and isinstance(answers[0], bytes):
            self.num_unsent = 0
            return answers.popleft()  # type: ignore[return-value]
        data: list[bytes] = []
        while answers:
            answer = answers[0]
            if isinstance(answer, Pieces):
                data.append(answer.take(_TURN_BYTES))
                if not answer:
                    answers.popleft()
                break  # of the turn
            data.append(answer)
            answers.popleft()
        self.num_unsent = sum(map(len, answers))
        return b"".join(data)

    def drop_unsent(self) -> None:
        """Forget the answers: the connection is over."""
        self._answers.clear()
        self.num_unsent = 0

    def forget(self) -> None:
        self.recent = None

    def announce_end(self) -> None:
        """Leave it to the next answer, which says so."""

    def go_away(self) -> None:
        """Say nothing: HTTP/1.1 has no frame for it."""


class HttpPort(Port):
    """Reads requests and answers them; used by the loop's thread only."""

    keeps_layouts = False

    def __init__(
        self,
        app: App,
        router: Router,
        loop: Loop,
        limits: PortLimits,
        pool: Pool,
        log: "AccessLog | None",
    ) -> None:
        """Connect the parts.

        Args:
            app: routes requests.
            router: the models.
            loop: whose thread this is.
            limits: of peers.
            pool: decodes large requests.
            log: records the requests; None if nothing does.
        """
        super().__init__(Host(clock=loop.clock), limits, app.tokens)
        self._app = app
        self._metrics = router.metrics
        self._router = router
        self.clock, self.post, self.calls = loop.clock, loop.post, loop.calls
        self.defer = loop.defer
        self.pool = pool
        self.log = log
        self._grace_until_s = -math.inf
        """Until when a drain waits for requests that may be on their way."""
        self._num_bad, self._complained_s = 0, -math.inf

    def new_engine(self, sock: socket.socket) -> HttpEngine:
        return HttpEngine()

    # Requests

    def receive(self, peer: Peer, data: bytes, now_s: float) -> None:
        engine: HttpEngine = peer.engine
        plan = engine.recent
        if plan is not None and plan.repeat is not None:
            rows = plan.repeat.rows(data) if len(data) <= _MAX_REPEATED_BYTES else None
            if rows is not None and self._run_repeated(peer, plan.repeat.encoder, rows, now_s):
                return
        engine.reader.receive(data)
        if engine.phase not in (ConnectionPhase.RUNNING, ConnectionPhase.QUEUED):
            self._advance(peer, now_s)
        self._pause(peer)

    # Repeated requests: one comparison tells that all but the rows is known

    def _run_repeated(
        self, peer: Peer, encoder: ResponseEncoder, rows: bytes, now_s: float
    ) -> bool:
        """Have a repeated request run, if it may now; it needs no object but the `Group`."""
        engine: HttpEngine = peer.engine
        target: Any = encoder.target
        if (
            engine.phase != ConnectionPhase.IDLE
            or engine.num_unsent
            or self.refusal is not None
            or self._router.routes.get(target.label[0]) is not target
        ):
            return False
        number: Any = self._begin(peer, now_s)
        engine.phase, engine.repeated = ConnectionPhase.RUNNING, engine.recent
        submit(Group(peer, [number], [rows], encoder, self, now_s, math.inf))
        return True

    def answer(self, group: Group, responses: Sequence[bytes | Pieces], run: Ran) -> None:
        """Answer a repeated request, unless its caller has left."""
        if not responses:
            return
        peer: Peer = group.caller  # type: ignore[assignment]
        engine: HttpEngine = peer.engine
        try:
            if isinstance(responses[0], Pieces):
                self.calls.budget.hold_answer(responses[0])
        except Overloaded as err:
            self.fail(group, err)
            return
        peer.active_s = self.clock()
        if self.refusal is not None:
            self._read_no_more(peer)
        engine.end()
        if peer.is_paused:
            self._pause(peer)
        engine.write(self._app.finish(responses[0], is_last=peer.state >= State.LAST))
        self.schedule_flush(peer)
        self._queue(peer)

    def fail(self, group: Group, error: ServingError) -> None:
        """Answer a repeated request with an error, unless its caller has left."""
        peer: Peer = group.caller  # type: ignore[assignment]
        call = self._call_of(peer)
        if call is not None and call.stream in group.streams:
            call.model = error.model or group.encoder.target.label
            self.fail_request(call, error)

    def _call_of(self, peer: Peer) -> Exchange | None:
        """Return the request in progress, as an object also if it is a repeated one."""
        engine: HttpEngine = peer.engine
        if engine.call is None and engine.repeated is not None:
            engine.call = Exchange(self, peer, engine.repeated, engine.stream)
            engine.call.is_running = True
        return engine.call

    # Other requests

    def _begin(self, peer: Peer, now_s: float) -> int:
        peer.swept_s = peer.active_s = now_s
        number: int = peer.engine.begin()
        return number

    def _pause(self, peer: Peer) -> None:
        """Read no more of a peer that has sent too much ahead, or for whose body there is no room.

        Until that is less, or there is.
        """
        engine: HttpEngine = peer.engine
        is_ahead = engine.phase in (ConnectionPhase.RUNNING, ConnectionPhase.QUEUED)
        is_paused = is_ahead and engine.reader.num_waiting > _MAX_AHEAD_BYTES
        if engine.call is not None and self.calls.budget.is_waiting(engine.call):
            is_paused = True
        if is_paused != peer.is_paused:
            peer.is_paused = is_paused
            self.schedule_flush(peer)

    def _advance(self, peer: Peer, now_s: float) -> None:
        """Read the next request, if it has come whole."""
        engine: HttpEngine = peer.engine
        if engine.num_unsent > _MAX_UNSENT_BYTES:
            engine.phase = ConnectionPhase.QUEUED
            peer.unread[engine] = None  # and resumed once they are taken
            return
        try:
            self._read_request(peer, now_s)
        except BadRequest as err:
            self._refuse_peer(peer, err)

    def headers_of(self, peer: Peer, stream: int) -> Iterable[tuple[str, str]]:
        call = self._call_of(peer)
        fields = () if call is None else call.plan.request.fields
        return ((name.decode("latin-1"), value.decode("latin-1")) for name, value in fields)

    def resume(self, peer: Peer, calls: Iterable[HttpEngine]) -> None:
        if peer.engine.call is not None:
            peer.engine.call.resume_sending()
        self._queue(peer)

    def _queue(self, peer: Peer) -> None:
        """Have the next request of a connection read, once it is its turn."""
        if peer.engine.phase == ConnectionPhase.QUEUED and peer.state < State.LAST:
            self.defer(partial(self._advance_next, peer))

    def _advance_next(self, peer: Peer) -> None:
        if peer.engine.phase == ConnectionPhase.QUEUED and peer.state < State.LAST:
            self._advance(peer, self.clock())
            self._pause(peer)

    def _read_request(self, peer: Peer, now_s: float) -> None:
        engine: HttpEngine = peer.engine
        reader, call = engine.reader, engine.call
        if call is None:
            request = reader.read_head()
            if request is None:
                if engine.phase != ConnectionPhase.HEAD and reader.num_waiting:  # its time begins
                    engine.phase, peer.opened_s = ConnectionPhase.HEAD, now_s
                elif engine.phase == ConnectionPhase.QUEUED:
                    engine.phase = ConnectionPhase.IDLE
                return
            call = self._begin_request(peer, request, now_s)
            if call.is_over:
                return
        body = reader.read_body(call.plan.request, call.plan.max_bytes)
        self.calls.budget.hold(call, reader.num_waiting if body is None else len(body))
        if call.is_over:  # there was no room
            return
        if body is None:
            self._let_more_come(call)
            return
        engine.phase, peer.active_s = ConnectionPhase.RUNNING, now_s
        call.body, call.is_running = body, True
        self.calls.end_at_deadline(call)
        call.start(_unpacked(call) if call.plan.is_packed else call.plan.handler(call))

    def _let_more_come(self, call: Exchange) -> None:
        """Have the rest of a body sent, once there is room for all of it."""
        request, engine = call.plan.request, call.peer.engine
        num_bytes = call.plan.max_bytes if request.num_bytes < 0 else request.num_bytes
        if not self.calls.budget.admit(call, num_bytes):
            return
        if request.expects_continue and not engine.reader.num_waiting:
            engine.write(_CONTINUE)

    def resume_reading(self, call: Exchange) -> None:
        """Read a body further, now that there is room for it."""
        self._let_more_come(call)
        self._pause(call.peer)
        self.schedule_flush(call.peer)

    def _begin_request(self, peer: Peer, request: Request, now_s: float) -> Exchange:
        """Find the handler of a request; one that is refused is over."""
        engine: HttpEngine = peer.engine
        plan = engine.recent
        if plan is None or plan.request is not request:
            plan = RoutedRequest(request)
        engine.phase = ConnectionPhase.BODY
        call = engine.call = Exchange(self, peer, plan, self._begin(peer, now_s))
        if self.log is not None:
            fields = request.fields
            sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in fields}
            method = f"{request.method} {plan.path}"
            call.logged = self.log.begin(method, peer_of(peer.socket), sent)
        if plan is not engine.recent:
            engine.recent = None
            try:
                self._app.prepare(plan)
            except Exception as err:
                self.fail_request(call, err)
                return call
            engine.recent = plan
            peer.trusted |= plan.is_trusted
        if call.logged is not None:
            call.logged.route = plan.route
        call.deadline_s = now_s + plan.timeout_s
        if self.refusal is not None and plan.is_work and not engine.has_grace:
            self.fail_request(call, self.refusal)
        return call

    # Answers

    def send_part(self, call: Exchange, part: bytes, kind: str) -> None:
        """Send a part of the answer to the request in progress; its head before the first."""
        peer, plan = call.peer, call.plan
        peer.active_s = self.clock()
        if not call.has_begun:
            call.has_begun = True
            if plan.request.is_last or self.refusal is not None:
                self._read_no_more(peer)
            request_id = (
                [] if call.logged is None else [(REQUEST_ID, call.logged.ids["request_id"])]
            )
            is_last = peer.state >= State.LAST
            head = self._app.encode_begin(
                kind, plan, is_last=is_last, in_chunks=not plan.request.is_old, more=request_id
            )
            peer.engine.write(head)
        if part:
            peer.engine.write(part if plan.request.is_old else encode_chunk(part))
        self.schedule_flush(peer)

    def is_unread(self, peer: Peer) -> bool:
        """Return whether a caller has not read what was sent, so that no more is made."""
        return self.num_unsent(peer) > _MAX_UNSENT_BYTES

    def _end_parts(self, call: Exchange, answer: Answer) -> None:
        """End an answer of which parts were sent."""
        peer, plan = call.peer, call.plan
        if isinstance(answer.body, bytes):
            self.send_part(call, answer.body, answer.kind)
        if not plan.request.is_old:
            peer.engine.write(LAST_CHUNK)
        if self.refusal is not None:
            self._read_no_more(peer)
        self._end_request(call, answer.code or name_of(answer.status), 200)
        self.schedule_flush(peer)
        self._queue(peer)

    def reply(self, call: Exchange, answer: Answer) -> None:
        """Answer the request in progress."""
        if call.has_begun:
            self._end_parts(call, answer)
            return
        peer, plan = call.peer, call.plan
        engine: HttpEngine = peer.engine
        try:
            if isinstance(answer.body, Pieces):
                self.calls.budget.hold_answer(answer.body)
        except Overloaded as err:
            answer = problem(err)
        peer.active_s = self.clock()
        is_whole = engine.phase == ConnectionPhase.RUNNING or not plan.request.num_bytes
        if plan.request.is_last or not is_whole or self.refusal is not None:
            self._read_no_more(peer)
        more = self._end_request(call, answer.code or name_of(answer.status), answer.status)
        is_last = peer.state >= State.LAST
        engine.write(self._app.encode(answer, plan, is_last=is_last, more=more))
        self.schedule_flush(peer)
        self._queue(peer)

    def fail_request(self, call: Exchange, error: Exception) -> None:
        """Answer the request in progress with an error."""
        if not isinstance(error, ServingError | HttpError):
            _log.error("a method failed", exc_info=error)
            error = HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error")
        answer = problem(error)
        self.reply(call, as_event(answer) if call.has_begun else answer)

    def _refuse_peer(self, peer: Peer, error: BadRequest) -> None:
        """Answer a malformed request, and close the connection after it."""
        self._num_bad += 1
        if (now_s := self.clock()) >= self._complained_s + _COMPLAINT_S:
            reason = f"{peer.address or 'unix:'}: {error.text}"
            _log.warning("bad HTTP requests: %d, the last from %s", self._num_bad, reason)
            self._num_bad, self._complained_s = 0, now_s
        engine: HttpEngine = peer.engine
        self._read_no_more(peer)
        refusal = HttpError(error.status, error.text)
        if engine.call is not None:
            self.fail_request(engine.call, refusal)
            return
        engine.phase = ConnectionPhase.IDLE
        answer = problem(refusal)
        self._metrics.count("other", answer.code)
        engine.write(self._app.encode(answer, None, is_last=True))
        self.schedule_flush(peer)

    def _read_no_more(self, peer: Peer) -> None:
        """Close the connection after the next answer, and forget its unread bytes."""
        peer.end_reading()
        peer.engine.reader = RequestReader()

    def _end_request(self, call: Exchange, name: str, status: int) -> list[tuple[str, str]]:
        """Count and forget the request in progress; return the header with its id."""
        self._metrics.count(call.plan.name, name, model=call.model)
        request_id = call.end_log(name, status)
        call.close()
        call.peer.engine.end()
        if call.peer.is_paused:
            self._pause(call.peer)
        return [(REQUEST_ID, request_id)] if request_id else []

    # All requests of a connection

    def is_pending(self, peer: Peer) -> bool:
        """Return whether calls are to be answered; in a drain's grace some may be on their way."""
        may_ask = peer.engine.phase != ConnectionPhase.QUEUED and peer.state < State.LAST
        return (may_ask and self.clock() < self._grace_until_s) or super().is_pending(peer)

    def has_accepted(self, peer: Peer) -> bool:
        return bool(peer.engine.phase == ConnectionPhase.RUNNING)

    def num_unsent(self, peer: Peer) -> int:
        unsent: int = peer.engine.num_unsent
        return len(peer.output) + unsent

    def is_kept(self, peer: Peer) -> bool:
        """Return whether a connection keeps its place: a peer that has not sent all is slow."""
        return bool(peer.engine.phase == ConnectionPhase.RUNNING or peer.output or peer.engine.due)

    def drop(self, peer: Peer) -> None:
        peer.engine.drop_unsent()

    def forget(self, peer: Peer) -> None:
        call = self._call_of(peer)
        if call is None:
            return
        peer.gave_up_s = self.clock()
        self._end_request(call, "CANCELLED", 499)
        for each in self._router.served:
            each.entry.forget(peer)

    def drain(self, refusal: ServingError) -> None:
        """Refuse new calls; the answers say that they are the last.

        HTTP/1.1 can't say so between two answers, and a caller loses the request that it sends
        while its connection is closed: so each that is open may send one more, or the rest of one.
        """
        self.refusal, self._grace_until_s = refusal, self.clock() + _GRACE_S
        for peer in self:
            engine: HttpEngine = peer.engine
            engine.forget()
            engine.has_grace = True

    def close(self) -> None:
        """Close the port; those who have just connected are told that the server ends."""
        if not self._acceptor.is_closed:
            self.accept(self.clock(), 0.0)
        super().close()

    def dismiss(self, peer: Peer) -> None:
        """Have a peer leave; a request that has begun to come is answered."""
        engine: HttpEngine = peer.engine
        if (
            engine.phase == ConnectionPhase.BODY
            and engine.call is not None
            and self.refusal is not None
        ):
            self.fail_request(engine.call, self.refusal)
        elif engine.phase in (ConnectionPhase.IDLE, ConnectionPhase.QUEUED):
            super().dismiss(peer)

    def sweep_calls(self, peer: Peer) -> None:
        call: Exchange | None = peer.engine.call
        if call is None or call.is_running:
            return
        budget = self.calls.budget
        if budget.is_waiting(call):
            call.refuse_bytes()
        elif self.clock() - budget.admitted_s(call) > self.limits.message_s:
            self.fail_request(call, _SLOW)

    def tick(self, now_s: float) -> None:
        """Look at all connections, and set the date that answers have."""
        super().tick(now_s)
        self._app.set_date()


def open_port(
    loop: Loop,
    listener: socket.socket,
    app: App,
    router: Router,
    limits: PortLimits,
    pool: Pool,
    *,
    tls: "Callable[[], Tls] | None" = None,
    log: "AccessLog | None" = None,
) -> HttpPort:
    """Return a port on a socket that listens, for `Loop.add`; see `HttpPort` and `Port.open`."""
    listener.setblocking(False)
    port = HttpPort(app, router, loop, limits, pool, log)
    port.open(listener, loop, tls)
    return port
