"""The grpcio transport: every method, on grpc.aio."""

import asyncio
import math
import time
from collections.abc import Sequence

import grpc

from serving.classifier import Classifier
from serving.config import BatchingConfig, ServerConfig
from serving.credentials.certificates import server_credentials
from serving.predictions import Predictions
from serving.protocols.messages import SPARE_BYTES, max_request_bytes
from serving.protocols.method import Method
from serving.protocols.plan import Plan
from serving.signature import Signature
from serving.system.address import check_free, with_port
from serving.transports.access_log import access_log
from serving.transports.grpcio.calls import AsyncCall, Caller, Calls
from serving.transports.grpcio.handlers import Handlers
from serving.transports.grpcio.interceptors import interceptors

_QUIET_S = 0.1
"""Seconds without a new call after which a drain is over."""
_QUIESCE_TIMEOUT_S = 5.0
"""How long a drain waits for such a moment."""
_GOODBYE_S = 0.02
"""How long callers have to learn that the port closes, before the held calls are refused."""
_DIGIT_BYTES = 5
"""The longest that a class number takes in an answer."""

_MAX_PENDING_CALLS = 65_536
"""Calls that wait in gRPC's core for the event loop."""

_READ_AHEAD_BYTES = 1 << 20
"""HTTP/2's window for each stream, some 1,300 images."""


class GrpcioServer:
    """All services on grpc.aio, on the running event loop."""

    def __init__(
        self, classifier: Classifier, methods: Sequence[Method], config: ServerConfig
    ) -> None:
        """Prepare.

        Raises:
            ConfigurationError: a certificate or a token can't be used.
        """
        self._config = config
        self._batcher = classifier.batcher
        self.calls = Calls(classifier.batcher, classifier.metrics)
        self._log = access_log(config)
        self._credentials = server_credentials(config.security)
        self._server = grpc.aio.server(
            interceptors=interceptors(config, methods, self.calls, self._log),
            options=_options(classifier.batching, classifier.signature, config.workers),
        )
        handlers = Handlers(methods, self.calls, classifier.metrics)
        self._server.add_generic_rpc_handlers((handlers,))

    async def start(self) -> str:
        """Bind the port and start to answer; returns the address with its port.

        Raises:
            ConfigurationError: the address can't be bound.
        """
        host, port = self._config.host, self._config.port
        if host.startswith("unix:"):
            self._bind(host)
            await self._server.start()
            return host
        if self._config.workers == 1:  # else the supervisor has reserved the port
            check_free(host, port)
        port = self._bind(with_port(host, port))
        await self._server.start()
        return with_port(host, port)

    def _bind(self, address: str) -> int:
        if self._credentials is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self._credentials)

    @property
    def num_calls(self) -> int:
        """Calls in progress."""
        return self.calls.num_active

    @property
    def num_waiting(self) -> int:
        """Images that wait for a run."""
        return self._batcher.num_waiting

    async def beat(self) -> None:
        """Return: the running event loop answers the calls."""

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new calls as Unavailable while the port still listens, and answer accepted ones.

        Calls that are pending at a stop are answered CANCELLED (grpc #41785), so this ends at a
        moment without new calls.

        Returns:
            False if `timeout_s` seconds passed first.
        """
        if not await asyncio.to_thread(self._batcher.drain, timeout_s):
            return False
        self.calls.hold_refused()
        give_up_s = time.monotonic() + _QUIESCE_TIMEOUT_S
        while time.monotonic() < give_up_s:
            num_begun = self.calls.num_begun
            await asyncio.sleep(_QUIET_S)
            if num_begun == self.calls.num_begun and not self.calls.num_active:
                break
        return True

    async def stop(self, grace_s: float) -> None:
        """Close the port; held and pending calls have `grace_s` seconds to end."""
        stopping = asyncio.create_task(self._server.stop(grace_s))
        await asyncio.sleep(_GOODBYE_S)
        self.calls.release()
        await stopping
        if self._log is not None:
            await asyncio.to_thread(self._log.close)

    async def ask(self, image: bytes) -> Predictions:
        """Classify one image the way every request goes.

        Raises:
            DigitsError: it was not answered.
        """
        plan = Plan(None, 1, lambda digits, rows, version: b"")
        call = AsyncCall(image, plan, Caller("self-test", math.inf))
        self.calls.submit(call)
        await self.calls.settled(call)
        return call.result().predictions()


def _options(batching: BatchingConfig, signature: Signature, workers: int) -> list[tuple[str, int]]:
    """Return every limit of the transport; none is left to gRPC's default."""
    max_images = batching.max_request_images
    row_bytes = signature.row_bytes + _DIGIT_BYTES
    return [
        ("grpc.max_receive_message_length", max_request_bytes(max_images, signature.image_bytes)),
        ("grpc.max_send_message_length", max_images * row_bytes + SPARE_BYTES),
        ("grpc.max_concurrent_streams", 1024),
        # Past these (1,000 and 3,000 by default) core answers waiting calls with CANCELLED, at
        # random (grpc #34782). Our queue refuses with a meaningful status.
        ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
        ("grpc.max_allowed_incoming_connections", 4096),
        ("grpc.server_handshake_timeout_ms", 10_000),  # the default of 120 s helps idle attackers
        # Clients ping while calls wait, to notice when the server is gone; pings closer than this
        # end the connection (5 minutes by default). Our clients ping every 1.5 s.
        ("grpc.http2.min_ping_interval_without_data_ms", 1_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Only workers share the port: without this, any second server could silently share it.
        ("grpc.so_reuseport", int(workers > 1)),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # identity only: no gzip bombs
        # How much a caller may send ahead. Core's own estimate grows while the loop is busy: unread
        # streams held 22 to 80 MiB each, now 15, at the same rates on loopback. A stream gets at
        # most a MiB per round trip.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _READ_AHEAD_BYTES),
    ]
