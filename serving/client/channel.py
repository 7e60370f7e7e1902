"""What a client's connection is made of: retries, limits, certificates, a token."""

import json
from pathlib import Path

import grpc

from serving.credentials.watched_files import read_bytes
from serving.errors import ConfigurationError

_SERVICE_CONFIG = json.dumps({"loadBalancingConfig": [{"round_robin": {}}]})
"""Calls take turns among the addresses that answer. Calls are sent again by us (`Attempts`): gRPC's
own retries end after five attempts, and for all calls while more than half of them fail."""

_OPTIONS = (
    ("grpc.service_config", _SERVICE_CONFIG),
    ("grpc.max_receive_message_length", 16 << 20),
    # A peer that has vanished without a word is found within 15 s by a call that waits.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    # Of the pings that core sends for its own purposes, too: it joins ours to one on its way.
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),  # no limit: a call that waits sends no data
    # One that comes back is found within a second or two, or five where packets are lost.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 5_000),  # how long an attempt to connect may take
    # Each client has connections of its own: a new one does not inherit a dead one.
    ("grpc.use_local_subchannel_pool", 1),
)


def options(target: str) -> list[tuple[str, str | int]]:
    """Give the options of a channel to a target."""
    scheme, _, addresses = target.partition(":")
    if scheme in ("ipv4", "ipv6") and "," in addresses:
        # By default all of them, which is no valid :authority. With TLS it is the name that all
        # certificates must bear.
        return [*_OPTIONS, ("grpc.default_authority", addresses.partition(",")[0])]
    return list(_OPTIONS)


class Access:
    """What a client shows to a server, and how it knows that it is the right one."""

    def __init__(
        self,
        token: str | None = None,
        tls_ca: str | Path | None = None,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
    ) -> None:
        """Read the files.

        Args:
            token: sent with every call; in the clear, unless there is TLS.
            tls_ca: PEM file of the authorities that may have signed the server's certificate;
                None is plaintext.
            tls_cert: PEM file of the client's own certificate, for mTLS.
            tls_key: its key.

        Raises:
            ConfigurationError: a file can't be read, one is missing beside the others, or the token
                can't be sent.
        """
        if token is not None and not (token.isascii() and token.isprintable()):
            raise ConfigurationError("a token must be printable ASCII on one line")
        self.metadata = None if token is None else (("authorization", f"Bearer {token}"),)
        if (tls_cert is None) != (tls_key is None):
            raise ConfigurationError("tls_cert and tls_key go together")
        if tls_ca is None and tls_cert is not None:
            raise ConfigurationError("tls_cert needs tls_ca, which makes the connection TLS")
        # Only the bytes: gRPC starts threads for credentials, which no fork survives.
        self._files = None if tls_ca is None else tuple(map(_read, (tls_ca, tls_key, tls_cert)))

    def channel(self, target: str) -> grpc.Channel:
        """Open a connection for threads."""
        if self._files is None:
            return grpc.insecure_channel(target, options=options(target))
        credentials = grpc.ssl_channel_credentials(*self._files)
        return grpc.secure_channel(target, credentials, options=options(target))

    def aio_channel(self, target: str) -> grpc.aio.Channel:
        """Open a connection for the running event loop."""
        if self._files is None:
            return grpc.aio.insecure_channel(target, options=options(target))
        credentials = grpc.ssl_channel_credentials(*self._files)
        return grpc.aio.secure_channel(target, credentials, options=options(target))


def _read(path: str | Path | None) -> bytes | None:
    return None if path is None else read_bytes(Path(path))
