"""One question to grpc.health.v1, for exec probes: it starts fast, so it imports gRPC alone."""

from pathlib import Path
from typing import Any

import grpc

from serving.errors import ConfigurationError
from serving.security.tls_probe import tls_mismatch
from serving.security.watched_files import read_bytes

_CHECK = "/grpc.health.v1.Health/Check"
_ANY = b""
"""HealthCheckRequest for the server as a whole: its one field is empty."""
_SERVING = b"\x08\x01"
"""HealthCheckResponse with status SERVING."""

Tls = tuple[Path | None, Path | None, Path | None]
"""PEM files: the authorities, the probe's own key and its certificate."""


def trouble(
    target: str, timeout_s: float, *, token: str | None, tls: Tls, server_name: str | None
) -> str | None:
    """Ask a server for its health.

    Returns:
        Why it is not SERVING, in one line; None if it is.

    Raises:
        ConfigurationError: a file can't be read, or the options contradict each other.
    """
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    with _channel(target, tls, server_name) as channel:
        check: Any = channel.unary_unary(_CHECK)  # bytes in, bytes out
        try:
            answer = check(_ANY, timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as err:
            is_unavailable = err.code() is grpc.StatusCode.UNAVAILABLE
            is_tls = tls[0] is not None
            if is_unavailable and (reason := tls_mismatch(target, timeout_s, is_tls=is_tls)):
                return reason
            return f"{err.code().name}: {' '.join(str(err.details()).split())}"
    return None if answer == _SERVING else "NOT_SERVING"


def _channel(target: str, tls: Tls, server_name: str | None) -> grpc.Channel:
    ca, key, cert = tls
    if ca is None:
        if cert or key or server_name:
            raise ConfigurationError("tls_cert, tls_key and tls_server_name need tls_ca")
        return grpc.insecure_channel(target)
    if (key is None) != (cert is None):
        raise ConfigurationError("tls_cert and tls_key go together")
    files = [None if path is None else read_bytes(path) for path in tls]
    options = [("grpc.ssl_target_name_override", server_name)] if server_name else []
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(*files), options)
