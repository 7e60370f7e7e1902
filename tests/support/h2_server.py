"""Servers in this process: a whole one, or h2 alone with limits of the test's choice."""

import asyncio
import threading
from contextlib import contextmanager
from typing import TypeVar

from digit_classifier.methods import methods as digits_methods
from serving.config import ServerConfig
from serving.protocols.health import Health
from serving.protocols.reflection import reflection_methods
from serving.router import Router
from serving.server.server import Server
from serving.transports.h2_server import H2Server
from tests.support.fakes import model_in, router_of

TIMEOUT_S = 20.0
Result = TypeVar("Result")


@contextmanager
def event_loop():
    """Run an event loop on a thread; yields a function that awaits on it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def run(begin):
        async def whole():
            return await begin()

        return asyncio.run_coroutine_threadsafe(whole(), loop).result(TIMEOUT_S)

    try:
        yield run
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@contextmanager
def server_inside(served, **options):
    """Serve a classifier's model, whole: options are those of `ServerConfig`."""
    config = ServerConfig(port=0, self_test_interval_s=0, **options)
    router = router_of(*model_in(served))

    async def started():
        server = Server(router, config)
        await server.start()
        return server

    with event_loop() as run:
        server = run(started)
        try:
            yield server
        finally:
            run(lambda: server.stop(grace_s=0))
            router.close()


@contextmanager
def h2_server(served, limits, config=None, host=None):
    """Serve digits, health and reflection; gives the address."""
    config = config or ServerConfig(port=0)
    health = Health()
    router = served if isinstance(served, Router) else router_of(*model_in(served))
    methods = [*digits_methods(router, "h2"), *health.methods(), *reflection_methods({})]
    server = H2Server(router, methods, config, limits, host)
    with event_loop() as run:
        try:
            yield run(server.start)
        finally:
            run(lambda: server.stop(0.0))
            router.close()
