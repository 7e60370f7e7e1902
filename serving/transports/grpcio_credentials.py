"""The credentials of grpcio's server, read again when their files change."""

import threading

import grpc

from serving.config import SecurityConfig
from serving.security.certificates import files_of, load
from serving.security.watched_files import WatchedFiles, read_bytes


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
