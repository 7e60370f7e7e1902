"""Answers to requests: written, counted and logged, and the end of the request."""

import logging
import math
from collections.abc import Callable
from http import HTTPStatus

from serving.errors import DigitsError
from serving.http1.requests import BadRequest
from serving.telemetry.metrics import Metrics
from serving.telemetry.tracing import latest_run
from serving.transports.access_log import REQUEST_ID, AccessLog
from serving.transports.http1.bodies import Bodies
from serving.transports.http1.exchange import Exchange
from serving.transports.http1.http_peer import HttpConnection
from serving.transports.http1.problems import Answer, HttpError, name_of, problem
from serving.transports.http1.routing import App, RoutedRequest
from serving.transports.loop import Loop

_log = logging.getLogger(__name__)

_COMPLAINT_S = 60.0
"""The least time between two log lines about peers that send malformed requests."""
_INFER = "HttpInfer"


class Replies:
    """Ends requests; used by the loop's thread only."""

    def __init__(
        self, app: App, metrics: Metrics, loop: Loop, log: AccessLog | None, bodies: Bodies,
        queue: Callable[[HttpConnection], None],
    ) -> None:  # fmt: skip
        """Connect the parts; `queue` has the next request of a connection read."""
        self._app = app
        self._metrics = metrics
        self._loop = loop
        self._log = log
        self._bodies = bodies
        self._queue = queue
        self.timed: set[Exchange] = set()
        """The requests in progress that have a deadline."""
        self.are_last = False
        """Whether connections are closed behind them: the server drains."""
        self._num_bad, self._complained_s = 0, -math.inf

    def encode(self, plan: RoutedRequest, answer: Answer) -> bytes:
        """Write a good answer that is not the last of its connection, from its third line on."""
        return self._app.encode(answer, plan, is_last=False).removeprefix(self._app.begin)

    def end_known(self, connection: HttpConnection, answer: bytes | DigitsError) -> None:
        """Answer a request that was recognised, from the third line on, or with an error."""
        if not connection.streams:  # its caller has left
            return
        connection.is_running = False
        connection.streams.clear()
        if isinstance(answer, bytes):
            connection.write(self._app.begin + answer)
        else:  # the next one is read, for this one may be for a model that is gone
            connection.known = None
            refusal = problem(answer)
            self._metrics.count(_INFER, name_of(refusal.status))
            connection.write(self._app.encode(refusal, None, is_last=False))
        self._loop.schedule_flush(connection)
        self._queue(connection)

    def reply(self, connection: HttpConnection, answer: Answer) -> None:
        """Answer the request in progress."""
        plan, exchange = connection.plan, connection.exchange
        assert plan is not None
        connection.active_s = self._loop.clock()
        is_whole = connection.is_running or not plan.request.num_bytes
        if plan.request.is_last or not is_whole or self.are_last:
            connection.read_no_more()
        name = name_of(answer.status)
        if exchange is not None:
            latest_run.set(exchange.last_run)
        more = self._end_log(connection, name, answer.status)
        self._metrics.count(plan.name, name)
        encoded = self._app.encode(answer, plan, is_last=connection.is_last, more=more)
        self._end(connection)
        connection.write(encoded)
        self._loop.schedule_flush(connection)
        self._queue(connection)

    def fail(self, connection: HttpConnection, error: Exception) -> None:
        """Answer the request in progress with an error."""
        if not isinstance(error, DigitsError | HttpError):
            _log.error("a handler failed", exc_info=error)
            error = HttpError(HTTPStatus.INTERNAL_SERVER_ERROR, "internal error")
        self.reply(connection, problem(error))

    def refuse_peer(self, connection: HttpConnection, error: BadRequest) -> None:
        """Answer a malformed request, and close the connection after it."""
        self._num_bad += 1
        if (now_s := self._loop.clock()) >= self._complained_s + _COMPLAINT_S:
            reason = f"{connection.address or 'unix:'}: {error.text}"
            _log.warning("bad HTTP requests: %d, the last from %s", self._num_bad, reason)
            self._num_bad, self._complained_s = 0, now_s
        connection.read_no_more()
        connection.is_early = False
        refusal = HttpError(error.status, error.text)
        if connection.plan is not None:
            self.fail(connection, refusal)
            return
        self._metrics.count("other", name_of(error.status))
        connection.write(self._app.encode(problem(refusal), None, is_last=True))
        self._loop.schedule_flush(connection)

    def cancel(self, connection: HttpConnection) -> None:
        """End a request whose caller has left."""
        name = _INFER if connection.plan is None else connection.plan.name
        self._metrics.count(name, "CANCELLED")
        self._end_log(connection, "CANCELLED", 499)
        self._end(connection)

    def _end(self, connection: HttpConnection) -> None:
        """Forget the request in progress."""
        exchange, connection.exchange = connection.exchange, None
        if exchange is not None:
            self.timed.discard(exchange)
            exchange.end()
        connection.plan, connection.is_running = None, False
        connection.streams.clear()
        self._bodies.release(connection)

    def _end_log(self, connection: HttpConnection, name: str, status: int) -> list[tuple[str, str]]:
        """Record a request that is over; return the header with its id."""
        call, connection.logged = connection.logged, None
        if call is None or self._log is None:
            return []
        self._log.end(call, name, status)
        return [(REQUEST_ID, call.ids["request_id"])]
