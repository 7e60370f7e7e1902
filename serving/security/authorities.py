"""The authorities that a client trusts: of a file, or those of the system."""

import ssl
from pathlib import Path

from serving.errors import ConfigurationError
from serving.security.watched_files import read_bytes

SYSTEM = "system"
"""The authorities that this machine trusts, in place of a file's name; a file is `./system`."""
_BUNDLES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora
    "/etc/ssl/ca-bundle.pem",  # SUSE
    "/etc/ssl/cert.pem",
)


def read_authorities(source: str | Path) -> bytes:
    """Return certificates as PEM.

    Args:
        source: a file, or "system"; the variable SSL_CERT_FILE names the system's file, too.

    Raises:
        ConfigurationError: the file can't be read, or the system has none.
    """
    if str(source) != SYSTEM:
        return read_bytes(Path(source))
    for path in (ssl.get_default_verify_paths().cafile, *_BUNDLES):
        if path is not None and Path(path).is_file():
            return read_bytes(Path(path))
    raise ConfigurationError(
        "tls_ca: the system has no authorities: install ca-certificates, or set SSL_CERT_FILE"
    )
