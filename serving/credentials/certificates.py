"""TLS for the server: certificates that are read again when they change."""

import ssl
import threading
from pathlib import Path

import grpc

from serving.config import SecurityConfig
from serving.credentials.watched_files import Watched, read_bytes
from serving.errors import ConfigurationError


def server_credentials(config: SecurityConfig) -> grpc.ServerCredentials | None:
    """Build the server's credentials; None if no certificate is asked for.

    With a client CA every client must show a certificate that it signed (mTLS). The files are
    looked at before each handshake; a new set that can't be used, such as a certificate whose key
    has not followed yet, is logged and the one before stays in use.

    Raises:
        ConfigurationError: a file can't be used; the text says which and why.
    """
    if config.tls_cert is None or config.tls_key is None:
        return None
    certificates = _Certificates(config)
    return grpc.dynamic_ssl_server_credentials(
        certificates.initial,
        certificates.renewed,  # type: ignore[arg-type]  # the stubs forget None: no change
        require_client_authentication=config.tls_client_ca is not None,
    )


class _Certificates:
    """Gives each configuration to gRPC once.

    gRPC's core frees a configuration when it gets the next one: to be given the same one again, at
    handshakes that go on at once, crashes the process.
    """

    def __init__(self, config: SecurityConfig) -> None:
        names = tuple(path for path in paths(config) if path is not None)
        self._watched = Watched(names, lambda: _read(config))
        self._lock = threading.Lock()
        self.initial = self._given = self._watched.get()

    def renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what was read since the last call; None if nothing was. From any thread."""
        with self._lock:
            newest = self._watched.get()
            if newest is self._given:
                return None
            self._given = newest
            return newest


def _read(config: SecurityConfig) -> grpc.ServerCertificateConfiguration:
    cert, key, client_ca = paths(config)
    assert cert is not None
    assert key is not None
    check_files(config)
    pair = (read_bytes(key), read_bytes(cert))
    roots = None if client_ca is None else read_bytes(client_ca)
    return grpc.ssl_server_certificate_configuration([pair], roots)


def check_files(config: SecurityConfig) -> ssl.SSLContext:
    """Load the files into a context: OpenSSL says what is wrong with them, gRPC would not.

    Raises:
        ConfigurationError: a file can't be used; the text says which and why.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cert, key, client_ca = paths(config)
    assert cert is not None
    for path in (cert, key, client_ca):
        if path is not None:
            read_bytes(path)  # says which file, where OpenSSL only says that one is missing
    try:
        context.load_cert_chain(cert, key, password=lambda: "")  # else it asks on the terminal
    except (OSError, ValueError) as err:  # SSLError is an OSError
        reason = getattr(err, "reason", None) or "not PEM, or an encrypted key"
        raise ConfigurationError(f"can't use {cert} with {key}: {reason}") from err
    try:
        if client_ca is not None:
            context.load_verify_locations(client_ca)
    except OSError as err:
        reason = getattr(err, "reason", None) or "not PEM"
        raise ConfigurationError(f"can't use {client_ca}: {reason}") from err
    return context


def paths(config: SecurityConfig) -> tuple[Path | None, Path | None, Path | None]:
    """Return the certificate's file, its key's, and the client authorities'."""
    return config.tls_cert, config.tls_key, config.tls_client_ca
