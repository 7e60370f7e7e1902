"""The socket that a server listens on: a TCP port, or a unix socket."""

import os
import socket
import stat
from contextlib import suppress

from serving.errors import ConfigurationError
from serving.system.address import bind, with_port

_UNIX = "unix:"
_BACKLOG = 1024
"""New connections that wait in the kernel."""


def listen(host: str, port: int, *, shared: bool) -> socket.socket:
    """Listen on a TCP port, or on a unix socket where the host is "unix:PATH".

    Args:
        host: the address.
        port: the port; 0 lets the kernel choose.
        shared: whether other worker processes listen on the port too.

    Returns:
        A socket that does not block.

    Raises:
        ConfigurationError: it can't be bound.
    """
    if host.startswith(_UNIX):
        listener = _bind_unix(host.removeprefix(_UNIX))
    else:
        listener = bind(host, port, backlog=_BACKLOG, shared=shared)
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket, host: str) -> str:
    """Return the address of a listening socket, as clients write it."""
    return host if host.startswith(_UNIX) else with_port(host, listener.getsockname()[1])


def _bind_unix(path: str) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if _is_abandoned(path):  # left behind by a server that was killed
            os.unlink(path)
        listener.bind(path)
        listener.listen(_BACKLOG)
    except OSError as err:
        listener.close()
        raise ConfigurationError(f"can't listen on {_UNIX}{path}: {err.strerror or err}") from err
    return listener


def _is_abandoned(path: str) -> bool:
    """Return whether a path is a socket without a listener."""
    with suppress(FileNotFoundError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                return True
    return False
