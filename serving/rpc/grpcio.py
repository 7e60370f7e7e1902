"""The grpcio transport: every method, on grpc.aio.

Alone on a TCP port it is complete and standard; behind the native front, on a unix socket, it
answers what the front does not.
"""

import grpc
from grpc_health.v1 import health_pb2_grpc

from serving.classifier import Classifier
from serving.config import ServerConfig
from serving.errors import ConfigurationError
from serving.images import IMAGE_BYTES
from serving.predictions import ROW_BYTES
from serving.rpc import digits, inference
from serving.rpc.access import AccessInterceptor
from serving.rpc.auth import token_interceptors
from serving.rpc.calls import Calls
from serving.rpc.classify import Classify
from serving.rpc.digits import DigitsServicer
from serving.rpc.health import HealthServicer
from serving.rpc.infer import ModelInfer
from serving.rpc.inference import InferenceServicer
from serving.rpc.tls import server_credentials
from serving.rpc.unknown import UnknownMethods

_SPARE_BYTES = 4096
"""Room for tags, lengths and names beside the images or answers of a message."""

_MAX_PENDING_CALLS = 65_536
"""Calls that wait for the event loop to pick them up."""

_READ_AHEAD_BYTES = 1 << 20
"""HTTP/2's window of a stream, some 1,300 images."""


class GrpcioServer:
    """All services on grpc.aio, on the running event loop."""

    def __init__(
        self,
        classifier: Classifier,
        classify: Classify,
        infer: ModelInfer,
        transport: str,
        config: ServerConfig | None = None,
    ) -> None:
        """Prepare; `classify` and `infer` are the hot methods, GetModel tells `transport`.

        Raises:
            ConfigurationError: a certificate or a token can't be used.
        """
        config = config or ServerConfig()
        self.calls = Calls(classifier.batcher, classifier.metrics)
        self._credentials = server_credentials(config.security)
        self.health = HealthServicer((digits.SERVICE, inference.SERVICE))
        self._server = grpc.aio.server(
            interceptors=_interceptors(config, self.calls),
            options=_options(classifier.batching.max_request_images, config.workers),
        )
        servicer = DigitsServicer(classifier, classify, self.calls, transport)
        inferences = InferenceServicer(classifier, infer, self.calls, self.health)
        self._server.add_generic_rpc_handlers((servicer.handlers(), inferences.handlers()))
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        if config.reflection:
            from serving.rpc.reflection import reflection_handlers

            self._server.add_generic_rpc_handlers(reflection_handlers(self.calls))
        self._server.add_generic_rpc_handlers((UnknownMethods(classifier.metrics),))

    async def start(self, address: str) -> int:
        """Bind "host:port" or "unix:path" and begin to answer.

        Returns:
            The port; 1 for a unix socket.

        Raises:
            ConfigurationError: the address can't be bound.
        """
        try:
            port = self._bind(address)
        except RuntimeError as err:
            raise ConfigurationError(f"can't listen on {address}: is the port taken?") from err
        await self._server.start()
        return port

    def _bind(self, address: str) -> int:
        if self._credentials is None:
            return self._server.add_insecure_port(address)
        return self._server.add_secure_port(address, self._credentials)

    async def stop(self, grace_s: float) -> None:
        """Close the port; calls that are pending now are answered CANCELLED (grpc #41785)."""
        await self._server.stop(grace_s)


def _options(max_request_images: int, workers: int) -> list[tuple[str, int]]:
    """Every limit of the transport, set rather than inherited."""
    return [
        # Twice the largest request: one that is a little too large is read, and told by how much.
        ("grpc.max_receive_message_length", 2 * max_request_images * IMAGE_BYTES + _SPARE_BYTES),
        ("grpc.max_send_message_length", max_request_images * (ROW_BYTES + 1) + _SPARE_BYTES),
        ("grpc.max_concurrent_streams", 1024),
        # Past these (1,000 and 3,000 by default) core answers calls that the loop has yet to take
        # with CANCELLED, at random (grpc #34782). Our queue refuses with a status that tells.
        ("grpc.server.max_pending_requests", _MAX_PENDING_CALLS),
        ("grpc.server.max_pending_requests_hard_limit", _MAX_PENDING_CALLS),
        ("grpc.max_allowed_incoming_connections", 4096),
        ("grpc.server_handshake_timeout_ms", 10_000),  # 120 s by default, a free seat for idlers
        # Clients ping while calls wait, to find out when this server is gone; below this interval a
        # connection is closed (5 minutes by default). Ours ping every 10 s.
        ("grpc.http2.min_ping_interval_without_data_ms", 5_000),
        ("grpc.keepalive_permit_without_calls", 1),
        # Workers share the port; else a second server would share it in silence.
        ("grpc.so_reuseport", int(workers > 1)),
        ("grpc.compression_enabled_algorithms_bitset", 1),  # identity only: no gzip bombs
        # What a caller may send ahead. Core's own estimate of it grows while the loop is busy:
        # streams that nobody reads held 22 to 80 MiB each, now 15; on loopback the rates are the
        # same. A connection takes in a MiB per round trip.
        ("grpc.http2.bdp_probe", 0),
        ("grpc.http2.lookahead_bytes", _READ_AHEAD_BYTES),
    ]


def _interceptors(config: ServerConfig, calls: Calls) -> list[grpc.aio.ServerInterceptor]:
    """Put before the handlers what is asked for, outermost first; nothing costs nothing."""
    access = [AccessInterceptor(config.access_log)] if config.access_log else []
    return [*access, *token_interceptors(config.security, calls)]
