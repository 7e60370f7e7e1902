"""The metrics port: /metrics for Prometheus, /healthz and /readyz for probes, and nothing else.

One thread serves all connections and one makes the metrics page, for any number of callers.
"""

from collections.abc import Callable, Iterable

from serving.router import Router
from serving.system.addresses import with_port
from serving.system.host import Host
from serving.system.listening import bind
from serving.telemetry.metrics import Readiness, Report
from serving.transports.http_port import Exchange, open_port
from serving.transports.http_routing import Answer, App, Endpoint
from serving.transports.limits import PortLimits
from serving.transports.loop import Loop
from serving.transports.pools import OneThread

_BACKLOG = 256
"""Connections that wait in the kernel to be accepted; past it they come a second late."""
LIMITS = PortLimits(
    max_message_bytes=0, max_connections=64, handshake_s=5.0, message_s=5.0, idle_s=60.0
)
"""One more connection takes the place of the longest idle one."""
_TEXT = "text/plain; charset=utf-8"


class Exporter:
    """Listens at once, and answers 503 until `serve` is called."""

    def __init__(
        self, host: str, port: int, names: Iterable[str] = (), limits: PortLimits = LIMITS
    ) -> None:
        """Listen, on its own threads.

        Args:
            host: a name or an address.
            port: the TCP port; 0 lets the kernel choose.
            names: of this server, beside localhost and addresses.
            limits: callers' limits.

        Raises:
            ConfigurationError: the address can't be bound.
        """
        self._report: Callable[[], Report] | None = None
        self._state: Callable[[], Readiness] = Readiness
        listener = bind(host, port, backlog=_BACKLOG)
        self.address = with_port(host, listener.getsockname()[1])
        router = Router()
        self._loop = Loop(router, poll=False, host=Host(), name="exporter")
        self._pages = OneThread("metrics-page")
        routes = [
            Endpoint("GET", "/healthz", self._alive),
            Endpoint("GET", "/readyz", self._ready),
            Endpoint("GET", "/metrics", self._metrics),
        ]
        app = App(routes, None, (host, *names), ())
        self._loop.add(open_port(self._loop, listener, app, router, limits, self._pages))
        self._loop.start()

    def serve(self, report: Callable[[], Report], state: Callable[[], Readiness]) -> None:
        """Start to answer.

        Args:
            report: returns the content of /metrics; called for each scrape, on the page's thread.
            state: returns the state of /readyz; called on the other thread, so it must not block.
        """
        self._report, self._state = report, state

    def close(self) -> None:
        """Close the port and its connections."""
        self._loop.stop()
        self._pages.close()

    async def _alive(self, _: Exchange) -> Answer:
        return Answer(b"alive\n", _TEXT)

    async def _ready(self, _: Exchange) -> Answer:
        state = self._state()
        lines = ["SERVING" if state.is_serving else "NOT_SERVING"]
        lines += [f"NOT_SERVING model {name}" for name in sorted(state.stuck_models)]
        body = "".join(f"{line}\n" for line in lines).encode()
        return Answer(body, _TEXT, 200 if state.is_serving else 503)

    async def _metrics(self, call: Exchange) -> Answer:
        if self._report is None:
            return Answer(b"starting\n", _TEXT, 503)
        return await call.work(_page, self._report, call.plan.get("accept"))


def _page(report: Callable[[], Report], accept: str) -> Answer:
    from serving.telemetry.exposition import encode

    kind, body = encode(report(), accept)
    return Answer(body, kind)
