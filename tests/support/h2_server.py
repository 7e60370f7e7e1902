"""The h2 transport in this process, with limits of the test's choice."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from serving import Classifier
from serving.config import ServerConfig
from serving.protocols.digits_v1.methods import digits_methods
from serving.protocols.health import Health
from serving.protocols.reflection import reflection_methods
from serving.router import Router
from serving.system.host import Host
from serving.transports.h2.connection import Connection
from serving.transports.h2.server import H2Server
from serving.transports.sockets.limits import Limits
from tests.support.fakes import router_of

TIMEOUT_S = 10.0


def with_small_buffer(sock: socket.socket, *args: Any) -> Connection:
    """Take the place of `Connection`, for a socket that is full with some 100 KB of answers."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
    return Connection(sock, *args)


@contextmanager
def h2_server(
    served: Classifier | Router,
    limits: Limits,
    config: ServerConfig | None = None,
    host: Host | None = None,
) -> Iterator[str]:
    """Serve digits, health and reflection; gives the address."""
    config = config or ServerConfig(port=0)
    health = Health(())
    router = served if isinstance(served, Router) else router_of(served.served, served.batching)
    methods = [*digits_methods(router, "h2"), *health.methods(), *reflection_methods()]
    server = H2Server(router, methods, config, limits, host)
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield asyncio.run_coroutine_threadsafe(server.start(), loop).result(TIMEOUT_S)
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(0.0), loop).result(TIMEOUT_S)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
        router.close()
