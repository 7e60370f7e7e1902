"""The grpcio transport: every method on grpc.aio, the plainest way. It is the reference."""

import asyncio
import threading
from collections.abc import Sequence

import grpc

from serving.config import SecurityConfig, ServerConfig
from serving.credentials.certificates import files_of, load
from serving.credentials.tokens import token_check
from serving.credentials.watched_files import WatchedFiles, read_bytes
from serving.errors import Unavailable
from serving.protocols.method import BatchedUnary, Method
from serving.router import Router
from serving.system.address import bind, with_port
from serving.transports.access_log import access_log
from serving.transports.connections import max_message_bytes
from serving.transports.grpcio.asyncio_loop import AsyncioLoop
from serving.transports.grpcio.handlers import Handlers

_QUIET_S = 0.1
"""Seconds without a new call after which a drain is over, and how often it looks for them."""
_MAX_LOOKS = 50
_GOODBYE_S = 0.02
"""How long callers have to learn that the port closes, before the held calls are refused."""


class GrpcioServer:
    """All services on grpc.aio, on the running event loop."""

    def __init__(self, router: Router, methods: Sequence[Method], config: ServerConfig) -> None:
        """Prepare.

        Raises:
            ConfigurationError: a certificate or a token can't be used.
        """
        self._config = config
        self._methods = methods
        self._log = access_log(config)
        self._credentials = server_credentials(config.security)
        self.loop = AsyncioLoop(router, self._forget_layouts)
        tokens = token_check(config.security)
        self._handlers = Handlers(methods, self.loop, router.metrics, tokens, self._log)
        options = _options(router, config)
        self._server = grpc.aio.server(handlers=(self._handlers,), options=options)

    async def start(self) -> str:
        """See `Transport`."""
        host, port = self._config.host, self._config.port
        is_path = host.startswith("unix:")
        if not is_path and self._config.workers == 1:  # else the supervisor has reserved the port
            bind(host, port).close()
        address = host if is_path else with_port(host, port)
        if self._credentials is None:
            port = self._server.add_insecure_port(address)
        else:
            port = self._server.add_secure_port(address, self._credentials)
        await self._server.start()
        self.loop.start()
        return host if is_path else with_port(host, port)

    def _forget_layouts(self) -> None:
        for method in self._methods:
            if isinstance(method, BatchedUnary):
                method.prefixes.forget()

    @property
    def num_calls(self) -> int:
        """See `Transport`."""
        return self._handlers.num_active + self.loop.num_calls

    async def beat(self) -> None:
        """Return: the running event loop answers the calls."""

    async def drain(self, timeout_s: float) -> bool:
        """See `Transport`.

        Calls that are pending at a stop are answered CANCELLED (grpc #41785), so this ends at a
        moment without new calls: refused calls are held, since their callers come again at once.
        """
        self._handlers.refusal = Unavailable("the server is shutting down")
        self.loop.drain(self._handlers.refusal)
        if not await asyncio.to_thread(self.loop.drained.wait, timeout_s):
            return False
        self._handlers.closing = asyncio.Event()
        for _ in range(_MAX_LOOKS):
            num_begun = self._handlers.num_begun
            await asyncio.sleep(_QUIET_S)
            if num_begun == self._handlers.num_begun:
                break
        return True

    async def stop(self, grace_s: float) -> None:
        """See `Transport`."""
        stopping = asyncio.create_task(self._server.stop(grace_s))
        await asyncio.sleep(_GOODBYE_S)
        if self._handlers.closing is not None:
            self._handlers.closing.set()
        await stopping
        self.loop.stop()
        if self._log is not None:
            await asyncio.to_thread(self._log.close)


def _options(router: Router, config: ServerConfig) -> list[tuple[str, int]]:
    """Return the limits of the transport."""
    max_bytes = max_message_bytes(router, config)
    return [
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.max_concurrent_streams", 1024),
        # Past these, 1,000 and 3,000 by default, core cancels waiting calls (grpc #34782).
        ("grpc.server.max_pending_requests", 65_536),
        ("grpc.server.max_pending_requests_hard_limit", 65_536),
        ("grpc.max_allowed_incoming_connections", 4096),
        ("grpc.server_handshake_timeout_ms", 10_000),  # the default of 120 s helps idle attackers
        ("grpc.max_connection_age_ms", round(config.max_connection_age_s * 1000) or 2**31 - 1),
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),  # our clients' is 1.5 s
        ("grpc.keepalive_permit_without_calls", 1),
        ("grpc.so_reuseport", int(config.workers > 1)),  # else any second server could share it
        ("grpc.compression_enabled_algorithms_bitset", 1),  # identity only: no gzip bombs
        ("grpc.http2.bdp_probe", 0),  # core's own estimate grows while the event loop is busy
        ("grpc.http2.lookahead_bytes", 1 << 20),
    ]


def server_credentials(config: SecurityConfig) -> grpc.ServerCredentials | None:
    """Build the credentials of grpcio's server; None without a certificate.

    Raises:
        ConfigurationError: a file can't be used; the text says which and why.
    """
    if config.tls_cert is None:
        return None
    certificates = _Certificates(config)
    return grpc.dynamic_ssl_server_credentials(
        certificates.initial,
        certificates.renewed,  # type: ignore[arg-type]  # the stubs lack None, which means no change
        require_client_authentication=config.tls_client_ca is not None,
    )


class _Certificates:
    """Gives each configuration to gRPC once.

    gRPC's core frees a configuration when it gets the next one. Getting the same one again, during
    concurrent handshakes, crashes the process.
    """

    def __init__(self, config: SecurityConfig) -> None:
        self._watched = WatchedFiles(files_of(config), lambda: _read(config))
        self._lock = threading.Lock()
        self.initial = self._given = self._watched.get()

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return the configuration if it is new since the last call, else None; from any thread."""
        with self._lock:
            newest = self._watched.get()
            if newest is self._given:
                return None
            self._given = newest
            return newest


def _read(config: SecurityConfig) -> grpc.ServerCertificateConfiguration:
    load(config)  # OpenSSL reports the error, gRPC does not
    cert, key, *client_ca = map(read_bytes, files_of(config))
    return grpc.ssl_server_certificate_configuration([(key, cert)], *client_ca)
