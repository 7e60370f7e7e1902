"""From bytes of connections to requests, and answers back, in order.

    bytes ──▶ known: rows behind a head and JSON that came before ──▶ a Batcher
      └─────▶ http1: head ──▶ Plan ──▶ body ──▶ Exchange ──▶ its handler

A connection has one request in progress; what it sends ahead waits.
"""

import logging
import math
from collections import deque
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from serving.batching.group import Group
from serving.errors import DeadlineExceeded, DigitsError, Overloaded
from serving.http1.server import BadRequest, Request
from serving.protocols.encoding import ResponseEncoder
from serving.router import Router
from serving.telemetry.tracing import latest_run
from serving.transports.access_log import REQUEST_ID, AccessLog, LoggedCall
from serving.transports.auth import TokenCheck
from serving.transports.h2.limits import Limits
from serving.transports.h2.loop import Loop
from serving.transports.http1.answers import Answer, HttpError, name_of, problem
from serving.transports.http1.bodies import Bodies
from serving.transports.http1.complaints import Complaints
from serving.transports.http1.connection import HttpConnection
from serving.transports.http1.exchange import Exchange
from serving.transports.http1.known import KnownCalls, learn
from serving.transports.http1.plan import App, Plan
from serving.transports.http1.pool import Pool
from serving.transports.http1.runs import Runs

_log = logging.getLogger(__name__)

_MAX_AHEAD_BYTES = 64 << 10
"""What a peer may send ahead of an answer; the connection is closed behind that one then."""
_MAX_UNSENT_BYTES = 64 << 10
"""Answers that a peer has not read, past which its next request waits."""
_MAX_ADVANCES = 8
"""Requests of one peer that are answered before the others' turn."""
_AHEAD_S = 2e-3
"""What a round answers of requests that were sent ahead, all peers together."""
_MAX_IGNORED_BYTES = 32 << 20
"""What a peer may send on after an answer that closes the connection, so that it reads that."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_SLOW = HttpError(HTTPStatus.BAD_REQUEST, "the body did not arrive in time")
_NO_ROOM = Overloaded("other requests' bodies leave no room for this one")
_INFER = "HttpInfer"


class Calls:
    """Reads requests and answers them; used by the loop's thread only."""

    is_stale = False

    def __init__(
        self, app: App, router: Router, loop: Loop, limits: Limits, pool: Pool,
        tokens: TokenCheck | None, log: AccessLog | None,
    ) -> None:  # fmt: skip
        """Connect the parts.

        Args:
            app: plans what to do with a request.
            router: the models.
            loop: whose thread this is.
            limits: what peers may use.
            pool: decodes what may take long.
            tokens: compares tokens; None if none are configured.
            log: records the requests; None if nothing does.
        """
        self._app = app
        self._metrics = router.metrics
        self._loop = loop
        self.pool = pool
        self._tokens = tokens
        self.need_tokens = tokens is not None
        self._digests = tokens.digests() if tokens is not None else None
        self._log = log
        self._refusal: DigitsError | None = None
        self._timed: set[Exchange] = set()
        """Those that have a deadline."""
        self._runs = Runs(router, loop)
        self._known = KnownCalls(self._runs, self._refuse_known, self._end_known)
        self._ahead: deque[HttpConnection] = deque()
        """Those that have sent requests ahead, the next one's turn first."""
        self._is_ahead_due = False
        """Whether the loop will look at them."""
        self._bodies = Bodies(limits.max_held_bytes)
        self._complaints = Complaints()

    # Requests

    def receive(self, connection: HttpConnection, data: bytes, now_s: float) -> None:
        """See `connections.Calls`."""
        if connection.is_last:
            connection.num_ignored += len(data)
            if connection.num_ignored > _MAX_IGNORED_BYTES:
                connection.home.drop(connection)
            return
        if self._known.take(connection, data, now_s):
            return
        engine = connection.engine
        engine.receive(data)
        if not connection.is_running:
            self.advance(connection, now_s)
        elif engine.num_waiting > _MAX_AHEAD_BYTES:
            connection.read_no_more()

    def advance(self, connection: HttpConnection, now_s: float) -> None:
        """Read the requests that have come, as far as they can be answered at once."""
        try:
            for _ in range(_MAX_ADVANCES):
                if connection.num_unsent > _MAX_UNSENT_BYTES:
                    connection.unread[connection] = None  # and resumed once they are taken
                    return
                if not self._read_request(connection, now_s):
                    return
        except BadRequest as err:
            self._refuse_peer(connection, err)
        else:
            self.queue(connection)

    def queue(self, connection: HttpConnection) -> None:
        """Have the next requests of a connection read, once it is its turn."""
        if connection.engine.num_waiting and not connection.is_ahead:
            connection.is_ahead = True
            self._ahead.append(connection)
            if not self._is_ahead_due:
                self._is_ahead_due = True
                self._loop.defer(self._advance_next)

    def _advance_next(self) -> None:
        begin_s = now_s = self._loop.clock()
        try:
            while self._ahead and now_s < begin_s + _AHEAD_S:
                connection = self._ahead.popleft()
                connection.is_ahead = False
                if connection.is_open and not connection.is_running:
                    self.advance(connection, now_s)
                    now_s = self._loop.clock()
        finally:
            self._is_ahead_due = bool(self._ahead)
            if self._ahead:
                self._loop.defer(self._advance_next)
                self._loop.touch(self._ahead[0])  # or the loop might sleep

    def _read_request(self, connection: HttpConnection, now_s: float) -> bool:
        """Read the next request; return whether another one may be read."""
        engine, plan = connection.engine, connection.plan
        if plan is None:
            request = engine.read_head()
            if request is None:
                if engine.num_waiting and not connection.is_early:  # its time begins
                    connection.is_early, connection.opened_s = True, now_s
                return False
            plan = self._begin(connection, request, now_s)
            if plan is None:
                return not connection.is_last
        body = engine.read_body(plan.request, plan.max_bytes)
        self._hold(connection, engine.num_waiting if body is None else len(body))
        if connection.plan is None:  # there was no room
            return False
        if body is None:
            if plan.request.expects_continue and not engine.num_waiting:
                connection.write(_CONTINUE)
            return False
        connection.is_running, connection.active_s = True, now_s
        exchange = Exchange(self, connection, plan, body, connection.begun_s)
        connection.exchange = exchange
        if exchange.deadline_s != math.inf:
            self._timed.add(exchange)
            self._loop.hurry()
        exchange.start()
        return not connection.is_running

    def _begin(self, connection: HttpConnection, request: Request, now_s: float) -> Plan | None:
        """Plan what to do with a request; None if it is refused."""
        plan = connection.recent
        if plan is None or plan.request is not request:
            plan = Plan(request)
        connection.plan, connection.is_early = plan, False
        connection.begun_s = connection.swept_s = connection.active_s = now_s
        connection.stream += 1
        connection.streams.add(connection.stream)
        if self._log is not None:
            fields = request.fields
            sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in fields}
            connection.logged = LoggedCall(f"{request.method} {plan.path}", connection.peer, sent)
        if plan is not connection.recent:
            connection.recent = None
            try:
                self._app.prepare(plan)
            except Exception as err:
                self.reply_error(connection, err)
                return None
            connection.recent = plan
            connection.trusted |= plan.is_trusted
        if connection.logged is not None:
            connection.logged.route = plan.route
        if self._refusal is not None and plan.is_work:
            self.reply_error(connection, self._refusal)
            return None
        return plan

    def encode(self, plan: Plan, answer: Answer) -> bytes:
        """Write a good answer that is not the last of its connection, from its third line on."""
        return self._app.encode(answer, plan, is_last=False).removeprefix(self._app.begin)

    def learn(self, exchange: Exchange, num_bytes: int, encoder: ResponseEncoder) -> None:
        """See `Exchange`."""
        plan = exchange.plan
        if not (self._log or self._refusal or plan.headers or plan.request.is_last):
            learn(exchange.connection, exchange.body, num_bytes, encoder, plan.timeout_s)

    def run(
        self, exchange: Exchange, message: Any, encoder: ResponseEncoder, deadline_s: float
    ) -> None:
        """See `Exchange`."""
        connection, streams = exchange.connection, [exchange.stream]
        arrived_s = self._loop.clock()
        self._runs.submit(
            Group(connection, streams, [message], encoder, exchange, arrived_s, deadline_s)
        )

    # Answers

    def _refuse_known(self, answer: Answer) -> bytes:
        self._metrics.count(_INFER, name_of(answer.status))
        return self._app.encode(answer, None, is_last=False)

    def _end_known(self, connection: HttpConnection, answer: bytes, *, is_whole: bool) -> None:
        connection.is_running = False
        connection.streams.clear()
        connection.write(answer if is_whole else self._app.begin + answer)
        self._loop.touch(connection)
        self.queue(connection)

    def reply(self, connection: HttpConnection, answer: Answer) -> None:
        """Answer the request in progress."""
        plan, exchange = connection.plan, connection.exchange
        assert plan is not None
        connection.active_s = self._loop.clock()
        is_whole = connection.is_running or not plan.request.num_bytes
        if plan.request.is_last or not is_whole or self._refusal is not None:
            connection.read_no_more()
        name = name_of(answer.status)
        if exchange is not None:
            latest_run.set(exchange.last_run)
        more = self._end_log(connection, name, answer.status)
        self._metrics.count(plan.name, name)
        encoded = self._app.encode(answer, plan, is_last=connection.is_last, more=more)
        self._end(connection)
        connection.write(encoded)
        self._loop.touch(connection)
        self.queue(connection)

    def reply_error(self, connection: HttpConnection, error: Exception) -> None:
        """Answer the request in progress with an error."""
        if not isinstance(error, DigitsError | HttpError):
            _log.error("a handler failed", exc_info=error)
            error = HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error")
        self.reply(connection, problem(error))

    def _refuse_peer(self, connection: HttpConnection, error: BadRequest) -> None:
        """Answer what is no request, and close the connection behind that."""
        self._complaints.note(connection.address, error.text, self._loop.clock())
        connection.read_no_more()
        connection.is_early = False
        refusal = HttpError(error.status, error.text)
        if connection.plan is not None:
            self.reply_error(connection, refusal)
            return
        self._metrics.count("other", name_of(error.status))
        connection.write(self._app.encode(problem(refusal), None, is_last=True))

    def _end(self, connection: HttpConnection) -> None:
        """Forget the request in progress."""
        exchange, connection.exchange = connection.exchange, None
        if exchange is not None:
            self._timed.discard(exchange)
            exchange.end()
        connection.plan, connection.is_running = None, False
        connection.streams.clear()
        self._bodies.release(connection)

    def _hold(self, connection: HttpConnection, num_bytes: int) -> None:
        """Note what is kept of a body, whose request may have to end for it, or others."""
        while connection.plan and (victim := self._bodies.hold(connection, num_bytes)):
            self.reply_error(victim, _NO_ROOM)

    def _end_log(self, connection: HttpConnection, name: str, status: int) -> list[tuple[str, str]]:
        """Record a request that is over; return the header with its id."""
        call, connection.logged = connection.logged, None
        if call is None or self._log is None:
            return []
        self._log.end(call, name, status)
        return [(REQUEST_ID, call.ids["request_id"])]

    # Time, and the end

    def check(self, connections: Iterable[HttpConnection]) -> None:
        """See `connections.Calls`."""
        assert self._tokens is not None
        if self._tokens.digests() is not self._digests:
            self._digests = self._tokens.digests()
            self._forget_known(connections)

    def _forget_known(self, connections: Iterable[HttpConnection]) -> None:
        for connection in connections:
            connection.known = connection.recent = None

    def forget_layouts(self) -> None:
        """See `connections.Calls`: a request that is refused is forgotten, too."""

    def forget(self, connection: HttpConnection) -> None:
        """See `connections.Calls`."""
        if not connection.streams:
            return
        connection.gave_up_s = self._loop.clock()
        name = _INFER if connection.plan is None else connection.plan.name
        self._metrics.count(name, "CANCELLED")
        self._end_log(connection, "CANCELLED", 499)
        self._end(connection)
        self._runs.forget(connection)

    def drain(self, refusal: DigitsError, connections: Iterable[HttpConnection]) -> None:
        """See `connections.Calls`."""
        self._refusal = refusal
        self._forget_known(connections)
        for connection in connections:
            plan = connection.plan
            if plan is not None and plan.is_work and not connection.is_running:
                self.reply_error(connection, refusal)

    def is_due(self, now_s: float) -> bool:
        """See `connections.Calls`."""
        return any(exchange.deadline_s <= now_s for exchange in self._timed)

    def tick(self, now_s: float) -> None:
        """See `connections.Calls`."""
        for exchange in [each for each in self._timed if each.deadline_s <= now_s]:
            self.reply_error(exchange.connection, DeadlineExceeded())
        self._complaints.tick(now_s)
        self._app.set_date()
        self._bodies.trim(now_s)

    def sweep(self, connection: HttpConnection) -> None:
        """See `connections.Calls`."""
        if connection.plan is not None and not connection.is_running:
            self.reply_error(connection, _SLOW)
