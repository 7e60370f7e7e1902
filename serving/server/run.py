"""Serve as the configuration says: in this process, or from several workers."""

import asyncio
import ipaddress
import logging

from serving.config import BatchingConfig, ModelConfig, ServerConfig
from serving.errors import ConfigurationError
from serving.server.serve import run_loop, serve

_log = logging.getLogger(__name__)


def run(model: ModelConfig, batching: BatchingConfig, config: ServerConfig) -> bool:
    """Load a model, serve it until SIGTERM or SIGINT, drain; SIGHUP looks for a new version.

    Args:
        model: the model and its device.
        batching: sizes and limits.
        config: address, TLS, tokens, workers and the like.

    Returns:
        True if every accepted request was answered.

    Raises:
        DigitsError: the server can't start.
    """
    if config.reload_interval_s and model.version is not None:
        raise ConfigurationError("reload_interval replaces versions, and --version pins one")
    warn_if_exposed(config)
    if config.workers == 1:
        return run_loop(serve(model, batching, config), config.transport)
    from serving.server.supervisor import supervise  # one process needs no multiprocessing

    return asyncio.run(supervise(model, batching, config))


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
