"""Calls in progress: coroutines of the loop, their deadlines and bytes, and the record of each."""

import heapq
import itertools
import logging
import math
import random
import re
import secrets
import time
import types
from collections.abc import Callable, Coroutine, Generator, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from functools import partial
from typing import Any, Protocol, TypeVar
from urllib.parse import unquote

from serving.batching.run import NEVER, Group, Ran, ResponseEncoder
from serving.commandline.installation import not_installed
from serving.config import ServerConfig
from serving.errors import ConfigurationError, Overloaded, ServingError
from serving.protocols.status import StatusCode
from serving.telemetry.logs import ACCESS
from serving.telemetry.metrics import NO_MODEL
from serving.transports.budget import Budget
from serving.transports.connections import Peer

# Traces

_FLUSH_MS = 3_000
REQUEST_ID = "x-request-id"
"""The header with a call's id, and the trailer that returns it."""
_MAX_LINES_PER_S = 100
"""More lines in a second are dropped; the metrics still count the calls."""
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
"""https://www.w3.org/TR/trace-context: version, trace id, parent id, flags."""
_CONTEXT = ("traceparent", "tracestate")
_HEALTH = ("/grpc.health.", "GET /v2/health/")
"""Probes come each second: they would be most of the spans."""
_SERVER_FAILED = (
    "UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
)  # fmt: skip
"""Statuses that make a server's span an error, by OpenTelemetry's conventions."""
SMALL_BYTES = 4096
"""The most that the loop itself decodes or writes: some 100 µs."""
_RESUME_S = 0.002
"""How long a tick resumes calls that wait for room."""
_MIN_DEADLINES = 1000
"""Deadlines of calls that are over are kept up to this number, and then removed together."""


class Tracer:
    """Makes a span for each call, and sends them from a thread of its own.

    OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS and
    the other variables of OpenTelemetry's SDK apply. A call whose caller does not sample its trace
    gets no span.
    """

    def __init__(self, endpoint: str) -> None:
        """Start to send.

        Args:
            endpoint: the collector, such as "http://127.0.0.1:4317"; plaintext unless https.

        Raises:
            ConfigurationError: the extra is not installed, or the endpoint is no URL.
        """
        scheme, _, place = endpoint.partition("://")
        if scheme not in ("http", "https") or not place:
            raise ConfigurationError(
                f"expected an OTLP endpoint such as http://127.0.0.1:4317, got {endpoint!r}"
            )
        try:
            from opentelemetry import propagate, trace
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as err:
            raise not_installed(err) from err
        exporter = OTLPSpanExporter(endpoint, insecure=scheme == "http")
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "digit-serving"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("serving")
        self._extract = propagate.extract
        self._server = trace.SpanKind.SERVER
        self._error = trace.StatusCode.ERROR

    def record(
        self,
        name: str,
        begun_s: float,
        metadata: Mapping[str, str],
        attributes: Mapping[str, Any],
        run: Ran,
        *,
        is_error: bool,
    ) -> None:
        """Record a call that ends now."""
        epoch_ns = time.time_ns() - time.monotonic_ns()
        begun_ns, parent = _ns(begun_s, epoch_ns), self._extract(metadata)
        span = self._tracer.start_span(name, parent, self._server, attributes, start_time=begun_ns)
        if not span.is_recording():
            return
        started_s, finished_s, model, version, num_rows = run
        if run is not NEVER:
            span.set_attributes(
                {
                    "model.name": model,
                    "model.version": version,
                    "batch.rows": num_rows,
                    "queue.seconds": started_s - begun_s,
                }
            )
            span.add_event("run started", timestamp=_ns(started_s, epoch_ns))
            span.add_event("run finished", timestamp=_ns(finished_s, epoch_ns))
        if is_error:
            span.set_status(self._error)
        span.end()

    def close(self) -> None:
        """Send the remaining spans, for a few seconds at most."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()


def _ns(monotonic_s: float, epoch_ns: int) -> int:
    return epoch_ns + round(monotonic_s * 1e9)


# Access lines

_log = logging.getLogger(ACCESS)


class LoggedCall:
    """A call in progress, and the fields of its line and span."""

    __slots__ = ("begun_s", "context", "ids", "method", "peer", "route", "run")

    def __init__(self, method: str, peer: str, metadata: Mapping[str, str]) -> None:
        """Start the call's clock.

        Args:
            method: the path, such as "/inference.GRPCInferenceService/ModelInfer"; over HTTP
                "POST /v2/models/iris/infer".
            peer: the caller's address as gRPC writes it: "ipv4:127.0.0.1:50051".
            metadata: the call's headers; malformed ids in them are ignored.
        """
        self.method = method
        self.peer = peer
        self.ids = _ids(metadata)
        """`request_id`: the caller's `x-request-id`, or a new one; and `trace_id` and `parent_id`
        if it sent a `traceparent`."""
        self.context = {name: metadata[name] for name in _CONTEXT if name in metadata}
        """The headers that name the caller's span."""
        self.begun_s = time.monotonic()
        self.route = ""
        """Of a call over HTTP, such as "/v2/models/{name}/infer"."""
        self.run = NEVER
        """The last run that answered it."""


class AccessLog:
    """Records calls; used by one thread."""

    def __init__(self, share: float, tracer: Tracer | None = None) -> None:
        """Log `share` of the calls that succeed, 0 to 1, and all that fail; nothing if it is 0.

        Args:
            share: of the calls that succeed.
            tracer: gets every call; None if there are no traces.
        """
        self._share = share
        self._tracer = tracer
        self._second = 0
        self._num_lines = 0

    def end(self, call: LoggedCall, status: str, http_status: int | None = None) -> None:
        """Record a call that has ended.

        Args:
            call: the call.
            status: the gRPC status code's name, such as "OK".
            http_status: of a call over HTTP.
        """
        if self._tracer is not None and not call.method.startswith(_HEALTH):
            self._trace(self._tracer, call, status, http_status)
        if not self._share or (status == "OK" and random.random() >= self._share):
            return
        if not self._has_room():
            return
        fields = {
            "method": call.method,
            "status": status,
            "duration_s": round(time.monotonic() - call.begun_s, 6),
            "peer": call.peer,
            **call.ids,
        }
        _log.info("call", extra={"fields": fields})

    def _trace(
        self, tracer: Tracer, call: LoggedCall, status: str, http_status: int | None
    ) -> None:
        attributes: dict[str, str | int] = {"request_id": call.ids["request_id"]}
        host, _, port = unquote(call.peer.partition(":")[2]).rpartition(":")
        if host:
            attributes |= {"network.peer.address": host.strip("[]"), "network.peer.port": int(port)}
        if http_status is None:
            name = call.method.removeprefix("/")
            service, _, method = name.rpartition("/")
            code = StatusCode[status].value
            attributes |= {
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "rpc.grpc.status_code": code,
            }
        else:
            method, _, path = call.method.partition(" ")
            name = f"{method} {call.route}".rstrip()
            attributes |= {
                "http.request.method": method,
                "url.path": path,
                "http.route": call.route,
                "http.response.status_code": http_status,
            }
        is_error = status in _SERVER_FAILED
        tracer.record(name, call.begun_s, call.context, attributes, call.run, is_error=is_error)

    def close(self) -> None:
        """Send the spans that are left."""
        if self._tracer is not None:
            self._tracer.close()

    def _has_room(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._num_lines = second, 0
        self._num_lines += 1
        return self._num_lines <= _MAX_LINES_PER_S


def access_log(config: ServerConfig) -> AccessLog | None:
    """Return the recorder of calls; None if there is none.

    Raises:
        ConfigurationError: see `Tracer`.
    """
    tracer = Tracer(config.otlp_endpoint) if config.otlp_endpoint else None
    if tracer is None and not config.access_log:
        return None
    return AccessLog(config.access_log, tracer)


def _ids(metadata: Mapping[str, str]) -> dict[str, str]:
    request_id = metadata.get(REQUEST_ID, "")
    if not _REQUEST_ID.fullmatch(request_id):
        request_id = secrets.token_hex(8)
    ids = {"request_id": request_id}
    if trace := _TRACEPARENT.fullmatch(metadata.get("traceparent", "")):
        ids |= {"trace_id": trace[1], "parent_id": trace[2]}
    return ids


# Calls, and what those of a loop share


Result = TypeVar("Result")


class Pool(Protocol):
    """Calls functions where they may take long, such as `Processes`."""

    def submit(self, owner: str, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Call a function of a module; the number of waiting calls of `owner` is limited."""

    def close(self) -> None:
        """Begin no further call."""


@types.coroutine
def paused(begin: Callable[[], object]) -> Generator[Callable[[], object], Any, Any]:
    """Wait for the outcome of the work that `begin`, called during the pause, begins."""
    return (yield begin)


class LoopCall:
    """A call in progress, on any protocol; used by the loop's thread only.

    Its method or handler is a coroutine, which waits for one thing at a time. Each protocol has a
    subclass, which knows how calls end.
    """

    __slots__ = (
        "_steps", "_work", "deadline_s", "is_over", "is_running", "logged", "model", "peer",
        "port", "stream",
    )  # fmt: skip

    def __init__(self, port: Any, peer: Peer, stream: Any, deadline_s: float) -> None:
        """Prepare; `start` begins.

        Args:
            port: the `Port` whose call it is.
            peer: its caller.
            stream: its name among those of the caller.
            deadline_s: in monotonic seconds.
        """
        self.port = port
        self.peer = peer
        self.stream = stream
        self.deadline_s = deadline_s
        self.is_over = False
        self.is_running = False
        """Whether it has come whole and waits for a run or a thread."""
        self.model = NO_MODEL
        """The version that it is for, as far as it is known."""
        self.logged: LoggedCall | None = None
        self._steps: Coroutine[Callable[[], object], Any, Any] | None = None
        self._work: Future[Any] | None = None

    def start(self, steps: Coroutine[Callable[[], object], Any, Any]) -> None:
        """Begin to answer."""
        self._steps = steps
        self._step(steps.send, None)

    # For methods and handlers

    async def run(self, rows: Any, encoder: ResponseEncoder, deadline_s: float = math.inf) -> Any:
        """Have rows run, and return the response.

        Args:
            rows: bytes, or an array for each input.
            encoder: makes the response.
            deadline_s: in monotonic seconds, if it comes before the call's.

        Raises:
            ServingError: there is no room, it was too late, or it failed.
        """
        now_s = self.port.clock()
        own_s = math.inf if encoder.timeout_s is None else encoder.timeout_s
        deadline_s = min(self.deadline_s, deadline_s, now_s + own_s)
        group = Group(self.peer, [self.stream], [rows], encoder, self, now_s, deadline_s)
        self.is_running, self.model = True, encoder.target.label
        return await paused(partial(submit, group))

    async def work(
        self,
        function: Callable[..., Result],
        *args: Any,
        size: int | None = None,
        few_bytes: int = SMALL_BYTES,
        pool: Pool | None = None,
    ) -> Result:
        """Call a function where it may take long.

        Args:
            function: of a module, unless `pool` is one of threads.
            args: its arguments.
            size: bytes that it reads or writes; here and now if they are few.
            few_bytes: how many these may be.
            pool: where, if not in the port's.

        Raises:
            ServingError: see the function.
        """
        if size is not None and size <= few_bytes:
            return function(*args)

        def begin() -> None:
            owner = self.peer.address or "unix"
            self._work = (pool or self.port.pool).submit(owner, function, *args)
            post = self.port.post
            self._work.add_done_callback(lambda future: post(partial(self._end_work, future)))

        self.is_running = True
        result: Result = await paused(begin)
        return result

    async def others(self) -> None:
        """Let other calls have their turn."""
        steps = self._steps
        assert steps is not None

        def go_on() -> None:
            if self._steps is steps:
                self._step(steps.send, None)

        await paused(partial(self.port.defer, go_on))

    def _end_work(self, future: "Future[Any]") -> None:
        if self._steps is None or future is not self._work:
            return
        error = CancelledError() if future.cancelled() else future.exception()
        if error is None:
            self._step(self._steps.send, future.result())
            return
        self._step(self._steps.throw, error)
        error.__traceback__ = None  # a circle through the future, which would keep the request

    # Outcomes

    def answer(self, group: Group, responses: Sequence[Any], run: Ran) -> None:
        if responses and self._steps is not None:
            self.model = run[2], run[3]
            if self.logged is not None:
                self.logged.run = run
            self._step(self._steps.send, responses[0])

    def fail(self, group: Group, error: ServingError) -> None:
        if self._steps is not None:
            self._step(self._steps.throw, error)

    def _step(self, resume: Callable[[Any], Callable[[], object]], outcome: Any) -> None:
        """Go on with an outcome, up to the next thing to wait for."""
        steps = self._steps
        assert steps is not None
        try:
            begin = resume(outcome)
            if not self.is_over:
                begin()
                return
            steps.close()  # it was ended by its own step
        except StopIteration as end:
            self._steps = None
            if not self.is_over:
                self._returned(end.value)
        except Exception as err:
            self._steps = None
            self.model = getattr(err, "model", None) or self.model
            steps.close()  # it has ended, unless the error is that of `begin`
            if not self.is_over:
                self._raised(err)

    def close(self) -> None:
        """Give the rest up; the call is over."""
        self.is_over = True
        self.port.calls.budget.hold(self, 0)
        self.port.calls.stalled.pop(self, None)
        steps, self._steps = self._steps, None
        if steps is not None and not steps.cr_running:  # type: ignore[attr-defined]
            steps.close()
        work, self._work = self._work, None  # a circle, which would keep the request
        if work is not None:
            work.cancel()

    def end_log(self, status: str, http_status: int | None = None) -> str:
        """Write the access line and the span of a call that is over.

        Args:
            status: the name of gRPC's code.
            http_status: of a call over HTTP.

        Returns:
            The id that its answer has; empty if calls are not logged.
        """
        logged, self.logged = self.logged, None
        if logged is None:
            return ""
        self.port.log.end(logged, status, http_status)
        return logged.ids["request_id"]

    # The protocol's part

    def _returned(self, outcome: Any) -> None:
        """Answer with the outcome of the coroutine."""
        raise NotImplementedError

    def _raised(self, error: Exception) -> None:
        """Answer with the error of the coroutine."""
        raise NotImplementedError

    def resume(self) -> None:
        """Go on, now that there may be room, or answers were read."""
        raise NotImplementedError

    def resume_reading(self) -> None:
        """Let more of the request come: there is room for it now."""
        raise NotImplementedError

    def expire(self) -> None:
        """End a call whose deadline has passed."""
        raise NotImplementedError

    def refuse_bytes(self) -> None:
        """End a call for whose bytes there is no room."""
        raise NotImplementedError


def submit(group: Group) -> None:
    """Have the rows of a call run; its sink gets the outcome."""
    if not group.encoder.target.submit(group):
        group.sink.fail(group, Overloaded())


class LoopCalls:
    """What the calls of a loop share: a heap of deadlines, a budget of bytes, those that wait."""

    def __init__(self, clock: Callable[[], float], hurry: Callable[[], None]) -> None:
        """Start with none; `hurry` has `tick` called soon."""
        self._clock = clock
        self.hurry = hurry
        self.stalled: dict[LoopCall, None] = {}
        """Calls that wait for room in a queue, the longest waiting first."""
        self.budget = Budget(clock, hurry)
        """The bytes of requests that have not come whole, or are not read yet."""
        self._deadlines: list[tuple[float, int, LoopCall]] = []
        self._numbers = itertools.count()
        self._max_deadlines = _MIN_DEADLINES

    def end_at_deadline(self, call: LoopCall) -> None:
        """Have a call ended at its deadline, if it has not ended before."""
        if call.deadline_s == math.inf:
            return
        heapq.heappush(self._deadlines, (call.deadline_s, next(self._numbers), call))
        self.hurry()
        if len(self._deadlines) > self._max_deadlines:  # most are of calls that have ended
            self._deadlines = [each for each in self._deadlines if not each[2].is_over]
            heapq.heapify(self._deadlines)
            self._max_deadlines = _MIN_DEADLINES + 2 * len(self._deadlines)

    def stall(self, call: LoopCall) -> None:
        """Have a call resumed once there may be room in its queue."""
        self.stalled[call] = None
        self.hurry()

    def is_due(self, now_s: float) -> bool:
        """Return whether `tick` has something to do by then, or may have at any time."""
        if self.stalled or self.budget.is_contended:
            return True
        return bool(self._deadlines and self._deadlines[0][0] <= now_s)

    def tick(self, now_s: float) -> None:
        """End the calls whose deadline has passed; resume those that waited for room."""
        while self._deadlines and self._deadlines[0][0] <= now_s:
            call = heapq.heappop(self._deadlines)[2]
            if not call.is_over:
                call.expire()
        self.budget.tick(now_s)
        end_s = self._clock() + _RESUME_S
        for _ in range(len(self.stalled)):
            if not self.stalled:
                break
            call = next(iter(self.stalled))
            del self.stalled[call]
            call.resume()
            if self._clock() > end_s:
                break
