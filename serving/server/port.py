"""A TCP port that several processes share, and one that the server can do without."""

import logging
import socket
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress

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
def reserved_port(host: str, port: int, number: int) -> Iterator[list[socket.socket]]:
    """Reserve a port for the processes that inherit its sockets; this one does not listen.

    So the port is known before a worker listens, and stays ours while no worker is alive. gRPC's
    core takes no socket: it binds its own to the port, with SO_REUSEPORT.

    Args:
        host: the address to bind.
        port: the TCP port; 0 lets the kernel choose.
        number: how many sockets to bind to it.

    Yields:
        The sockets.

    Raises:
        ConfigurationError: the address can't be bound.
    """
    with ExitStack() as stack:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            _refuse_taken(family, address)
            sockets: list[socket.socket] = []
            # One more, for the number: `refuse_callers` would free a port that the kernel chose.
            for _ in range(1 + number):
                sock = stack.enter_context(socket.socket(family, kind, protocol))
                sock.setblocking(False)  # now: another worker may look at it before its own does
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.bind(sockets[0].getsockname() if sockets else address)
                sockets.append(sock)
        except (OSError, ValueError) as err:
            raise cannot_listen(host, port, err) from err
        yield sockets[1:]


def refuse_callers(listeners: Iterable[socket.socket]) -> None:
    """Have the kernel refuse callers until a process listens again; the port stays ours."""
    for listener in listeners:
        with suppress(OSError):  # nobody has listened on it
            listener.shutdown(socket.SHUT_RD)


def _refuse_taken(family: int, address: tuple[object, ...]) -> None:
    """Raise OSError if another server listens there, even one that would share its port."""
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # a port just closed is free
        probe.bind(address)
