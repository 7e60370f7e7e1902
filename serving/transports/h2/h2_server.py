"""The h2 transport: connects its parts, and serves one port."""

import asyncio
import socket
from collections.abc import Sequence

from serving.config import ServerConfig
from serving.credentials.certificates import server_context
from serving.credentials.tokens import token_check
from serving.errors import Unavailable
from serving.protocols.method import Method
from serving.router import Router
from serving.system.address import address_of, others
from serving.system.cores import may_poll
from serving.system.host import Host
from serving.transports.access_log import access_log
from serving.transports.connections import Connections, Limits, max_message_bytes
from serving.transports.h2.call_headers import HeaderParser
from serving.transports.h2.context import Context
from serving.transports.h2.h2_calls import H2Calls
from serving.transports.h2.h2_peer import Connection
from serving.transports.loop import Loop


class H2Server:
    """Serves every method over HTTP/2, on one thread."""

    def __init__(
        self, router: Router, methods: Sequence[Method], config: ServerConfig,
        limits: Limits | None = None, host: Host | None = None,
    ) -> None:  # fmt: skip
        """Prepare; `start` binds.

        Raises:
            ConfigurationError: a certificate or a token can't be used.
        """
        self._router = router
        self._config = config
        self._host = host or Host()
        self._tls = server_context(config.security, "h2")
        self._log = access_log(config)
        self._limits = limits or Limits(
            max_message_bytes=max_message_bytes(router, config),
            age_s=config.max_connection_age_s,
        )
        paths = {method.path.encode(): method for method in methods}
        self._heads = HeaderParser(paths, token_check(config.security))
        self.loop: Loop | None = None

    async def start(self) -> str:
        """See `Transport`."""
        listener = self.open()
        assert self.loop is not None
        self.loop.start()
        return address_of(listener, self._config.host)

    def open(self) -> socket.socket:
        """Bind the port, and make the loop that serves it; returns the port's socket.

        Raises:
            ConfigurationError: the address can't be bound.
        """
        config, limits, host = self._config, self._limits, self._host
        listener = host.listen(config.host, config.port)
        loop = self.loop = Loop(self._router, poll=may_poll(config.workers), host=host)
        context = Context(self._router, limits, loop)
        listeners = [listener, *others(config.host, config.port)]
        connections = Connections(
            listeners, loop.selector, limits, H2Calls(self._heads, context), self._tls,
            lambda sock, tls: Connection(sock, tls, limits, host, self._log), loop.schedule_flush,
        )  # fmt: skip
        loop.add(connections)
        return listener

    @property
    def num_calls(self) -> int:
        """See `Transport`."""
        return 0 if self.loop is None else self.loop.num_calls

    async def beat(self) -> None:
        """See `Transport`."""
        assert self.loop is not None
        ours, turn = asyncio.get_running_loop(), asyncio.Event()

        def answer() -> None:
            ours.call_soon_threadsafe(turn.set)

        self.loop.post(answer)
        await turn.wait()

    async def drain(self, timeout_s: float) -> bool:
        """See `Transport`."""
        assert self.loop is not None
        self.loop.drain(Unavailable("the server is shutting down"))
        return await asyncio.to_thread(self.loop.drained.wait, timeout_s)

    async def stop(self, grace_s: float) -> None:
        """See `Transport`."""
        if self.loop is not None:
            await asyncio.to_thread(self.loop.stop)
        if self._log is not None:
            await asyncio.to_thread(self._log.close)
