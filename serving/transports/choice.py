"""Which transport answers, and who can reach it."""

import importlib.util
import ipaddress
import logging

from serving.config import ServerConfig
from serving.errors import ConfigurationError

_log = logging.getLogger(__name__)


def choose_transport(config: ServerConfig) -> str:
    """Resolve "auto": h2 where its package is installed.

    Raises:
        ConfigurationError: h2 was asked for and is not installed.
    """
    has_h2 = importlib.util.find_spec("ngh2") is not None
    if config.transport == "h2" and not has_h2:
        raise ConfigurationError("transport h2 needs ngh2: pip install 'digit-serving[serve]'")
    return "h2" if has_h2 and config.transport != "grpcio" else "grpcio"


def warn_if_exposed(config: ServerConfig) -> None:
    """Log a warning if other machines can reach the port and something is not protected."""
    security = config.security
    missing = [] if security.has_tls else ["TLS"]
    if not security.has_tokens and security.tls_client_ca is None:
        missing.append("tokens")
    if missing and not _is_loopback(config.host):
        _log.warning(
            "other machines can reach %s without %s: see SECURITY.md",
            config.host,
            " and ".join(missing),
        )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
