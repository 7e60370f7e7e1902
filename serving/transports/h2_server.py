"""The transport `h2`: the gRPC port on a loop of its own, from start to stop."""

import asyncio
import socket
from collections.abc import Sequence

from serving.config import ServerConfig
from serving.errors import Unavailable
from serving.protocols.method import Method
from serving.router import Router
from serving.security.certificates import server_tls
from serving.security.tokens import token_check
from serving.system.cores import may_poll
from serving.system.host import Host
from serving.system.listening import address_of
from serving.telemetry.access_log import open_access_log
from serving.transports.grpc_headers import HeaderParser
from serving.transports.grpc_port import H2Port
from serving.transports.loop import Loop
from serving.transports.port_limits import PortLimits, max_buffered_bytes, max_message_bytes


class H2Server:
    """Serves every method over HTTP/2, on one thread: see `ServerTransport`."""

    def __init__(
        self,
        router: Router,
        methods: Sequence[Method],
        config: ServerConfig,
        limits: PortLimits | None = None,
        host: Host | None = None,
    ) -> None:
        """Prepare; `start` binds.

        Raises:
            ConfigurationError: a certificate or a token can't be used.
        """
        self._router = router
        self._config = config
        self._host = host or Host()
        self._tls = server_tls(config.security, "h2")
        self._log = open_access_log(config)
        self._limits = limits or PortLimits(
            max_message_bytes=max_message_bytes(router, config),
            max_buffered_bytes=max_buffered_bytes(router, config),
            age_s=config.max_connection_age_s,
        )
        paths = {method.path.encode(): method for method in methods}
        self._header_parser = HeaderParser(paths, token_check(config.security))
        self.loop: Loop | None = None

    async def start(self) -> str:
        listener = self.open()
        assert self.loop is not None
        self.loop.start()
        return address_of(listener, self._config.host)

    def open(self) -> socket.socket:
        """Bind the port, and make the loop that serves it; returns the port's socket.

        Raises:
            ConfigurationError: the address can't be bound.
        """
        config, host = self._config, self._host
        listener = host.listen(config.host, config.port)
        methods = self._header_parser.methods.values()
        poll = may_poll(config.workers)
        loop = self.loop = Loop(self._router, methods, poll=poll, host=host)
        port = H2Port(self._router, self._header_parser, loop, self._limits, host, self._log)
        port.open(listener, loop, self._tls)
        loop.add(port)
        return listener

    @property
    def num_calls(self) -> int:
        return 0 if self.loop is None else self.loop.num_calls

    async def beat(self) -> None:
        assert self.loop is not None
        ours, turn = asyncio.get_running_loop(), asyncio.Event()

        def answer() -> None:
            ours.call_soon_threadsafe(turn.set)

        self.loop.post(answer)
        await turn.wait()

    async def drain(self, timeout_s: float) -> bool:
        assert self.loop is not None
        self.loop.drain(Unavailable("the server is shutting down"))
        return await asyncio.to_thread(self.loop.drained.wait, timeout_s)

    async def stop(self, grace_s: float) -> None:
        if self.loop is not None:
            await asyncio.to_thread(self.loop.stop)
        if self._log is not None:
            await asyncio.to_thread(self._log.close)
