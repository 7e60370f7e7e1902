"""Which transport answers, and who can reach it."""

import importlib.util
import ipaddress
import logging

from serving.config import SecurityConfig, ServerConfig, Transport
from serving.errors import ConfigurationError

_log = logging.getLogger(__name__)


def choose_transport(wanted: Transport, security: SecurityConfig) -> str:
    """Resolve "auto": native where its package is installed and nothing secret is asked for.

    The native front has no TLS, and with tokens it would refuse health's probes, too.

    Raises:
        ConfigurationError: native was asked for and is not installed, or can't do what is asked.
    """
    has_native = importlib.util.find_spec("pygrpc_native") is not None
    is_secured = security.has_tls or security.has_tokens
    if wanted == "native" and not has_native:
        raise ConfigurationError("transport native needs: pip install 'digit-serving[serve]'")
    if wanted == "native" and is_secured:
        raise ConfigurationError("TLS and tokens need transport grpcio: native has neither")
    return "native" if has_native and wanted != "grpcio" and not is_secured else "grpcio"


def warn_if_exposed(config: ServerConfig) -> None:
    """Log a warning if other machines can reach the port and something is not protected."""
    security = config.security
    missing = [] if security.has_tls else ["TLS"]
    if not security.has_tokens and security.tls_client_ca is None:
        missing.append("tokens")
    if missing and not _is_loopback(config.host):
        _log.warning(
            "other machines may reach %s, and there are no %s: see SECURITY.md",
            config.host,
            " and no ".join(missing),
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
