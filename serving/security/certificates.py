"""The server's certificate, its key and its clients' authorities, as a context of TLS."""

import ssl
from collections.abc import Callable
from pathlib import Path

from serving.config import SecurityConfig
from serving.errors import ConfigurationError
from serving.security.tls import Tls
from serving.security.watched_files import WatchedFiles, read_bytes


def server_context(config: SecurityConfig, protocol: str) -> Callable[[], ssl.SSLContext]:
    """Return a function that gives the context for a new connection.

    Args:
        config: the files, a certificate's among them.
        protocol: its ALPN name, "h2" or "http/1.1".

    Raises:
        ConfigurationError: a file can't be used; the text says which and why.
    """
    return WatchedFiles(files_of(config), lambda: load(config, protocol)).get


def load(config: SecurityConfig, protocol: str = "h2") -> ssl.SSLContext:
    """Load the files into a context; see `server_context`.

    Raises:
        ConfigurationError: a file can't be used; the text says which and why.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([protocol])
    cert, key, *client_ca = files_of(config)
    for path in (cert, key, *client_ca):
        read_bytes(path)  # names the missing file, which OpenSSL does not
    try:
        # Without a password, OpenSSL asks for one on the terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ValueError) as err:  # SSLError is an OSError
        reason = getattr(err, "reason", None) or "not PEM, or an encrypted key"
        raise ConfigurationError(f"can't use {cert} with {key}: {reason}") from err
    for path in client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(path)
        except OSError as err:
            reason = getattr(err, "reason", None) or "not PEM"
            raise ConfigurationError(f"can't use {path}: {reason}") from err
    return context


def files_of(config: SecurityConfig) -> tuple[Path, ...]:
    """Return the certificate's file, its key's, and the client authorities' if there is one."""
    files = (config.tls_cert, config.tls_key, config.tls_client_ca)
    return tuple(path for path in files if path is not None)


def server_tls(config: SecurityConfig, protocol: str) -> Callable[[], Tls] | None:
    """Return a function that makes the encryption of a new connection; None without a certificate.

    Args:
        config: the files.
        protocol: its ALPN name, "h2" or "http/1.1".

    Raises:
        ConfigurationError: a file can't be used; the text says which and why.
    """
    if not config.has_tls:
        return None
    context = server_context(config, protocol)
    return lambda: Tls(context())
