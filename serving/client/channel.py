"""A client's channel: its options, certificates and token."""

import json
import sys
from pathlib import Path
from typing import Any

import grpc

from serving.client.addresses import target_of
from serving.credentials.watched_files import read_bytes
from serving.errors import ConfigurationError

_SERVICE_CONFIG = json.dumps(
    {"loadBalancingConfig": [{"round_robin": {}}], "healthCheckConfig": {"serviceName": ""}}
)
"""Calls take turns among the addresses that answer and say SERVING by Health.Watch: a server that
drains gets none. `Attempts` retries calls: gRPC's own retries end after five attempts, and stop for
all calls while more than half of them fail."""

_OPTIONS: tuple[tuple[str, str | int], ...] = (
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.max_receive_message_length", 16 << 20),
    # A waiting call notices within 15 s that its peer vanished silently.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # The same for core's own pings: core merges ours with one that is in flight.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),  # no limit: a waiting call sends no data
    # A server that is back is found within one or two seconds, within five if packets are lost.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # how long an attempt to connect may take
    # Each client has its own connections: a new client does not inherit a dead one.
    ("grpc.use_local_subchannel_pool", 1),
)


class Access:
    """The client's token and certificates, and the authorities that it trusts."""

    def __init__(
        self,
        token: str | None,
        tls_ca: str | Path | None,
        tls_cert: str | Path | None,
        tls_key: str | Path | None,
    ) -> None:
        """Read the files; see `Connection` for the arguments and errors."""
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ConfigurationError("a token must be printable ASCII on one line")
        self._metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        if (tls_cert is None) != (tls_key is None):
            raise ConfigurationError("tls_cert and tls_key go together")
        if tls_ca is None and tls_cert is not None:
            raise ConfigurationError("tls_cert needs tls_ca, which makes the connection TLS")
        # Only the bytes: gRPC starts threads for credentials, which do not survive a fork.
        self._files = None if tls_ca is None else tuple(map(_read, (tls_ca, tls_key, tls_cert)))

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The metadata of a call: the token, and the caller's span if it uses OpenTelemetry."""
        if "opentelemetry.trace" not in sys.modules:  # this process makes no spans
            return self._metadata
        from opentelemetry import propagate

        context: dict[str, str] = {}
        propagate.inject(context)
        return (*self._metadata, *context.items())

    def open_channel(self, library: Any, address: str) -> Any:
        """Open a channel of `grpc`, or of `grpc.aio` for the running event loop.

        Raises:
            ConfigurationError, Unavailable: see `target_of`.
        """
        options = [*_OPTIONS]
        target, authority = target_of(address)
        if authority is not None:  # with TLS every certificate must have this name
            options.append(("grpc.default_authority", authority))
        if self._files is None:
            return library.insecure_channel(target, options=options)
        credentials = grpc.ssl_channel_credentials(*self._files)
        return library.secure_channel(target, credentials, options=options)


def _read(path: str | Path | None) -> bytes | None:
    return None if path is None else read_bytes(Path(path))
