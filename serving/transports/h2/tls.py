"""TLS: a context for new connections, made again when the certificates change."""

import ssl
from collections.abc import Callable

from serving.config import SecurityConfig
from serving.credentials.certificates import check_files, paths
from serving.credentials.watched_files import Watched


def server_context(config: SecurityConfig) -> Callable[[], ssl.SSLContext] | None:
    """Return what gives the context for a new connection; None if no certificate is asked for.

    With a client CA every client must show a certificate that it signed (mTLS). The files are
    looked at before each handshake; a set that can't be used, such as a certificate whose key has
    not followed yet, is logged, and the one before stays in use.

    Raises:
        ConfigurationError: a file can't be used; the text says which and why.
    """
    if config.tls_cert is None:
        return None
    names = tuple(path for path in paths(config) if path is not None)
    return Watched(names, lambda: _context(config)).get


def _context(config: SecurityConfig) -> ssl.SSLContext:
    context = check_files(config)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["h2"])
    if config.tls_client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
    return context
