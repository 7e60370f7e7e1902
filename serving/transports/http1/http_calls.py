"""From bytes of connections to requests, and answers back, in order.

    bytes ──▶ known rows behind a head and JSON that came before ──▶ a Batcher
      └─────▶ http1: head ──▶ RoutedRequest ──▶ body ──▶ Exchange ──▶ its handler

A connection has one request in progress; further ones wait.
"""

import math
import socket
import ssl
from collections.abc import Callable, Iterable
from functools import partial
from http import HTTPStatus

from serving.batching.queue import ResponseEncoder
from serving.credentials.tokens import TokenCheck
from serving.errors import DeadlineExceeded, DigitsError, Overloaded
from serving.http1.requests import BadRequest, Request
from serving.router import Router
from serving.system.host import Host
from serving.transports.access_log import AccessLog, LoggedCall
from serving.transports.connections import Calls, Connections, Limits
from serving.transports.http1.bodies import Bodies
from serving.transports.http1.exchange import Exchange, Pool, submit
from serving.transports.http1.http_peer import HttpConnection
from serving.transports.http1.known import Known
from serving.transports.http1.problems import HttpError
from serving.transports.http1.replies import Replies
from serving.transports.http1.routing import App, RoutedRequest
from serving.transports.loop import Loop

_MAX_AHEAD_BYTES = 64 << 10
"""Bytes that a peer may send ahead of an answer; then the connection is closed after that one."""
_MAX_UNSENT_BYTES = 64 << 10
"""Answers that a peer has not read, past which its next request waits."""
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_SLOW = HttpError(HTTPStatus.BAD_REQUEST, "the body did not arrive in time")
_NO_ROOM = Overloaded("other requests' bodies leave no room for this one")


class HttpCalls(Calls):
    """Reads requests and answers them; used by the loop's thread only."""

    def __init__(
        self, app: App, router: Router, loop: Loop, limits: Limits, pool: Pool,
        tokens: TokenCheck | None, log: AccessLog | None,
    ) -> None:  # fmt: skip
        """Connect the parts.

        Args:
            app: routes requests.
            router: the models.
            loop: whose thread this is.
            limits: of peers.
            pool: decodes large requests.
            tokens: compares tokens; None if none are configured.
            log: records the requests; None if nothing does.
        """
        super().__init__(tokens)
        self._app = app
        self._loop = loop
        self.clock, self.post = loop.clock, loop.post
        self.pool = pool
        self._router = router
        self._log = log
        self._bodies = Bodies(limits.max_buffered_bytes)
        self.replies = Replies(app, router.metrics, loop, log, self._bodies, self.queue)

    def forget_layouts(self) -> None:
        """See `Calls`: a known request that is refused is forgotten, too."""

    # Requests

    def receive(self, connection: HttpConnection, data: bytes, now_s: float) -> None:
        """See `Calls`."""
        known, engine = connection.known, connection.engine
        # An answer in progress comes first.
        is_next = not (connection.streams or engine.num_waiting)
        if known is not None and is_next and known.is_same(data):
            connection.begin(now_s)
            connection.is_running = True
            submit(known.group(connection, data, now_s))
            return
        engine.receive(data)
        if not connection.is_running:
            self._advance(connection, now_s)
        elif engine.num_waiting > _MAX_AHEAD_BYTES:
            connection.read_no_more()

    def _advance(self, connection: HttpConnection, now_s: float) -> None:
        """Read the next request, if it has come whole."""
        if connection.num_unsent > _MAX_UNSENT_BYTES:
            connection.unread[connection] = None  # and resumed once they are taken
            return
        try:
            self._read_request(connection, now_s)
        except BadRequest as err:
            self.replies.refuse_peer(connection, err)

    def queue(self, connection: HttpConnection) -> None:
        """Have the next request of a connection read, once it is its turn."""
        if connection.engine.num_waiting and not connection.is_ahead:
            connection.is_ahead = True
            self._loop.defer(partial(self._advance_next, connection))

    def _advance_next(self, connection: HttpConnection) -> None:
        connection.is_ahead = False
        if connection.is_open and not (connection.is_running or connection.is_last):
            self._advance(connection, self.clock())

    def _read_request(self, connection: HttpConnection, now_s: float) -> None:
        engine, plan = connection.engine, connection.plan
        if plan is None:
            request = engine.read_head()
            if request is None:
                if engine.num_waiting and not connection.is_early:  # its time begins
                    connection.is_early, connection.opened_s = True, now_s
                return
            plan = self._begin(connection, request, now_s)
            if plan is None:
                return
        body = engine.read_body(plan.request, plan.max_bytes)
        self._hold(connection, engine.num_waiting if body is None else len(body))
        if connection.plan is None:  # there was no room
            return
        if body is None:
            if plan.request.expects_continue and not engine.num_waiting:
                connection.write(_CONTINUE)
            return
        connection.is_running, connection.active_s = True, now_s
        exchange = connection.exchange = Exchange(self, connection, plan, body, connection.begun_s)
        if exchange.deadline_s != math.inf:
            self.replies.timed.add(exchange)
            self._loop.hurry()
        exchange.start()

    def _begin(
        self, connection: HttpConnection, request: Request, now_s: float
    ) -> RoutedRequest | None:
        """Find the handler of a request; None if it is refused."""
        plan = connection.recent
        if plan is None or plan.request is not request:
            plan = RoutedRequest(request)
        connection.plan, connection.is_early = plan, False
        connection.begin(now_s)
        if self._log is not None:
            fields = request.fields
            sent = {name.decode("latin-1"): value.decode("latin-1") for name, value in fields}
            connection.logged = LoggedCall(f"{request.method} {plan.path}", connection.peer, sent)
        if plan is not connection.recent:
            connection.recent = None
            try:
                self._app.prepare(plan)
            except Exception as err:
                self.replies.fail(connection, err)
                return None
            connection.recent = plan
            connection.trusted |= plan.is_trusted
        if connection.logged is not None:
            connection.logged.route = plan.route
        if self._refusal is not None and plan.is_work:
            self.replies.fail(connection, self._refusal)
            return None
        return plan

    def learn(self, exchange: Exchange, num_bytes: int, encoder: ResponseEncoder) -> None:
        """See `Exchange`."""
        plan, connection = exchange.plan, exchange.connection
        if not (self._log or self._refusal or plan.headers or plan.request.is_last):
            whole = connection.engine.head + exchange.body
            prefix = whole[: len(whole) - num_bytes]
            timeout_s, end = plan.timeout_s, self.replies.end_known
            connection.known = Known(prefix, len(whole), encoder, timeout_s, end)

    def _hold(self, connection: HttpConnection, num_bytes: int) -> None:
        """Note the buffered bytes of a body; its request, or others, may be ended for them."""
        while connection.plan and (victim := self._bodies.buffer(connection, num_bytes)):
            self.replies.fail(victim, _NO_ROOM)

    # Time, and the end

    def forget(self, connection: HttpConnection) -> None:
        """See `Calls`."""
        if not connection.streams:
            return
        connection.gave_up_s = self.clock()
        self.replies.cancel(connection)
        for batcher in self._router.batchers:
            batcher.forget(connection)

    def drain(self, refusal: DigitsError, connections: Iterable[HttpConnection]) -> None:
        """See `Calls`."""
        self._refusal = refusal
        self.replies.are_last = True
        for connection in connections:
            connection.forget_known()
            plan = connection.plan
            if plan is not None and plan.is_work and not connection.is_running:
                self.replies.fail(connection, refusal)

    def is_due(self, now_s: float) -> bool:
        """See `Calls`."""
        return any(exchange.deadline_s <= now_s for exchange in self.replies.timed)

    def tick(self, now_s: float) -> None:
        """See `Calls`."""
        for exchange in [each for each in self.replies.timed if each.deadline_s <= now_s]:
            self.replies.fail(exchange.connection, DeadlineExceeded())
        self._app.set_date()
        self._bodies.trim(now_s)

    def sweep(self, connection: HttpConnection) -> None:
        """See `Calls`."""
        if connection.plan is not None and not connection.is_running:
            self.replies.fail(connection, _SLOW)


def open_port(
    loop: Loop, listeners: list[socket.socket], app: App, router: Router, limits: Limits,
    pool: Pool, *, tls: Callable[[], ssl.SSLContext] | None = None,
    tokens: TokenCheck | None = None, log: AccessLog | None = None,
) -> Connections:  # fmt: skip
    """Return the connections of a port, for `Loop.add`; see `Connections` and `HttpCalls`."""
    host = Host(clock=loop.clock)
    for listener in listeners:
        listener.setblocking(False)
    calls = HttpCalls(app, router, loop, limits, pool, tokens, log)
    make = partial(HttpConnection, host=host)
    return Connections(listeners, loop.selector, limits, calls, tls, make, loop.schedule_flush)
