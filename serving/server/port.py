"""A TCP port that several processes share, and one that the server can do without."""

import logging
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from serving.config import ServerConfig
from serving.errors import ConfigurationError
from serving.system.address import cannot_listen

_log = logging.getLogger(__name__)


@contextmanager
def optional_http(config: ServerConfig) -> Iterator[None]:
    """Log a warning if the port of HTTP can't be bound in this block and is optional."""
    try:
        yield
    except ConfigurationError as err:
        if not config.http_is_optional:
            raise
        _log.warning("HTTP is off: %s; choose another port with --http-port", err)


@contextmanager
def reserved_port(host: str, port: int) -> Iterator[int]:
    """Reserve a port for processes that listen on it with SO_REUSEPORT; this one does not listen.

    So the number is known before a worker listens, and stays ours while no worker is alive.

    Args:
        host: the address to bind.
        port: the TCP port; 0 lets the kernel choose.

    Yields:
        The port.

    Raises:
        ConfigurationError: the address can't be bound.
    """
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as reservation:
            _refuse_taken(family, address)
            reservation.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            reservation.bind(address)
            yield reservation.getsockname()[1]
    except (OSError, ValueError) as err:
        raise cannot_listen(host, port, err) from err


def _refuse_taken(family: int, address: tuple[object, ...]) -> None:
    """Raise OSError if another server listens there, even one that would share its port."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just closed is free
        probe.bind(address)
