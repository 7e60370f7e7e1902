"""Whether other machines can reach a server's ports without TLS or without tokens."""

import ipaddress
import logging

from serving.config import ServerConfig

_log = logging.getLogger(__name__)


def warn_if_exposed(config: ServerConfig) -> None:
    """Log a warning if other machines can reach a port without TLS or without tokens."""
    security = config.security
    missing = [] if security.has_tls else ["TLS"]
    if not security.has_tokens and security.tls_client_ca is None:
        missing.append("tokens")
    hosts = {config.host} if config.http_port is None else {config.host, config.http_host}
    for host in sorted(hosts):
        if missing and not _is_local(host):
            lacking = " and ".join(missing)
            _log.warning("other machines can reach %s without %s: see SECURITY.md", host, lacking)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.startswith("unix:")
