"""One question to grpc.health.v1, for exec probes: it starts fast, so it imports gRPC alone."""

import socket
from pathlib import Path
from typing import Any

import grpc

from serving.errors import ConfigurationError
from serving.security.authorities import read_authorities
from serving.security.tls_probe import tls_mismatch
from serving.security.watched_files import read_bytes

_CHECK = "/grpc.health.v1.Health/Check"
_SERVICE = b"\x0a"
"""The key of HealthCheckRequest's one field, which is left out for the server as a whole."""
_UNIX = "unix:"
_SERVING = b"\x08\x01"
"""HealthCheckResponse with status SERVING."""

Tls = tuple[Path | None, Path | None, Path | None]
"""PEM files: the authorities, the probe's own key and its certificate."""


def trouble(
    target: str,
    timeout_s: float,
    *,
    service: str,
    token: str | None,
    tls: Tls,
    server_name: str | None,
) -> str | None:
    """Ask a server for its health.

    Args:
        target: the server.
        timeout_s: how long it may take.
        service: a model or a service; empty for the server as a whole.
        token: of the caller.
        tls: the files; none without TLS.
        server_name: the name that the certificate must have, if it is not the target's.

    Returns:
        Why it is not SERVING, in one line; None if it is.

    Raises:
        ConfigurationError: a file can't be read, or the options contradict each other.
    """
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    with _channel(target, tls, server_name) as channel:
        check: Any = channel.unary_unary(_CHECK)  # bytes in, bytes out
        try:
            answer = check(_request(service), timeout=timeout_s, metadata=metadata)
        except grpc.RpcError as err:
            return _in_words(err, target, timeout_s, is_tls=tls[0] is not None)
    return None if answer == _SERVING else "NOT_SERVING"


def _request(service: str) -> bytes:
    """Encode a HealthCheckRequest."""
    name = service.encode()
    return _SERVICE + _varint(len(name)) + name if name else b""


def _varint(number: int) -> bytes:
    """Encode a length as protobuf does; that of `serving.protocols` would import protobuf."""
    low, high = number & 0x7F, number >> 7
    return bytes([low]) if not high else bytes([low | 0x80]) + _varint(high)


def _in_words(err: Any, target: str, timeout_s: float, *, is_tls: bool) -> str:
    """Return why a server did not answer, in one line."""
    code = err.code()
    if code is grpc.StatusCode.NOT_FOUND:
        return "there is no such model"
    if code is grpc.StatusCode.DEADLINE_EXCEEDED:
        return f"no answer within {timeout_s:g} s"
    if code is grpc.StatusCode.UNAVAILABLE:
        reason = tls_mismatch(target, timeout_s, is_tls=is_tls) or _unreachable(target, timeout_s)
        if reason:
            return reason
    return f"{code.name}: {' '.join(str(err.details()).split())}"


def _unreachable(target: str, timeout_s: float) -> str | None:
    """Connect once more, for the reason in plain words; None if that is not it, or not known."""
    host, _, port = target.rpartition(":")
    try:
        if target.startswith(_UNIX):
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(target.removeprefix(_UNIX))
        elif port.isdecimal() and "," not in target:
            socket.create_connection((host.strip("[]"), int(port)), timeout_s).close()
    except socket.gaierror:
        return f"the name {host} can't be resolved"
    except TimeoutError:
        return f"can't connect: no answer within {timeout_s:g} s"
    except OSError as err:
        return f"can't connect: {err.strerror or err}"
    return None


def _channel(target: str, tls: Tls, server_name: str | None) -> grpc.Channel:
    ca, key, cert = tls
    if ca is None:
        if cert or key or server_name:
            raise ConfigurationError("tls_cert, tls_key and tls_server_name need tls_ca")
        return grpc.insecure_channel(target)
    if (key is None) != (cert is None):
        raise ConfigurationError("tls_cert and tls_key go together")
    pair = [None if path is None else read_bytes(path) for path in (key, cert)]
    files = [read_authorities(ca), *pair]
    options = [("grpc.ssl_target_name_override", server_name)] if server_name else []
    return grpc.secure_channel(target, grpc.ssl_channel_credentials(*files), options)
