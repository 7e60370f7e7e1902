"""TLS for the server: certificates that are reloaded when their files change.

With a client CA every client must present a certificate that it signed (mTLS). The files are
checked before each handshake. A set that can't be used, such as a new certificate beside the old
key, is logged, and the previous one stays in use.
"""

import ssl
import threading
from collections.abc import Callable
from pathlib import Path

import grpc

from serving.config import SecurityConfig
from serving.credentials.watched_files import WatchedFiles, read_bytes
from serving.errors import ConfigurationError


def server_context(config: SecurityConfig, protocol: str) -> Callable[[], ssl.SSLContext] | None:
    """Return a function that gives the context for a new connection; None without a certificate.

    Args:
        config: the files.
        protocol: what is spoken, as ALPN names it: "h2" or "http/1.1".

    Raises:
        ConfigurationError: a file can't be used; the text says which and why.
    """
    if config.tls_cert is None:
        return None
    return WatchedFiles(_files(config), lambda: _context(config, protocol)).get


def _context(config: SecurityConfig, protocol: str) -> ssl.SSLContext:
    context = _loaded(config)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([protocol])
    if config.tls_client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


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
        self._watched = WatchedFiles(_files(config), lambda: _read(config))
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
    _loaded(config)  # OpenSSL says what is wrong with them, gRPC does not
    cert, key, *client_ca = map(read_bytes, _files(config))
    return grpc.ssl_server_certificate_configuration([(key, cert)], *client_ca)


def _loaded(config: SecurityConfig) -> ssl.SSLContext:
    """Load the files into a context.

    Raises:
        ConfigurationError: a file can't be used; the text says which and why.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    cert, key, *client_ca = _files(config)
    for path in (cert, key, *client_ca):
        read_bytes(path)  # names the missing file, which OpenSSL does not
    try:
        context.load_cert_chain(
            cert, key, password=lambda: ""
        )  # else OpenSSL asks for one on the terminal
    except (OSError, ValueError) as err:  # SSLError is an OSError
        reason = getattr(err, "reason", None) or "not PEM, or an encrypted key"
        raise ConfigurationError(f"can't use {cert} with {key}: {reason}") from err
    for path in client_ca:
        try:
            context.load_verify_locations(path)
        except OSError as err:
            reason = getattr(err, "reason", None) or "not PEM"
            raise ConfigurationError(f"can't use {path}: {reason}") from err
    return context


def _files(config: SecurityConfig) -> tuple[Path, ...]:
    """Return the certificate's file, its key's, and the client authorities' if there is one."""
    files = (config.tls_cert, config.tls_key, config.tls_client_ca)
    return tuple(path for path in files if path is not None)
