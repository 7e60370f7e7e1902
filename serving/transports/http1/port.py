"""A port of HTTP/1.1 on a loop."""

import socket
import ssl
from collections.abc import Callable

from serving.credentials.tokens import TokenCheck
from serving.router import Router
from serving.system.host import Host
from serving.transports.access_log import AccessLog
from serving.transports.http1.exchange import Pool
from serving.transports.http1.http_calls import HttpCalls
from serving.transports.http1.http_peer import HttpConnection
from serving.transports.http1.routing import App
from serving.transports.sockets.connections import Connections
from serving.transports.sockets.loop import Loop
from serving.transports.sockets.port_limits import Limits


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
    return Connections(
        listeners, loop.selector, limits, calls, tls,
        lambda sock, cipher: HttpConnection(sock, cipher, host), loop.schedule_flush,
    )  # fmt: skip
