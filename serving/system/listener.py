"""The socket that a server listens on: a TCP port, a unix socket, or one that systemd opened."""

import os
import socket
import stat
from contextlib import suppress

from serving.errors import ConfigurationError
from serving.system.address import bind, with_port

_UNIX = "unix:"
_BACKLOG = 1024
"""New connections that wait in the kernel."""
_FIRST_INHERITED = 3
"""The file descriptor of the first socket that systemd passes on (sd_listen_fds(3))."""


def listen(host: str, port: int) -> socket.socket:
    """Listen on a TCP port, or on a unix socket where the host is "unix:PATH".

    A socket that systemd opened for this process is used instead: callers who came before this
    process, or between two of them, wait in it.

    Args:
        host: the address.
        port: the port; 0 lets the kernel choose.

    Returns:
        A socket that does not block.

    Raises:
        ConfigurationError: it can't be bound.
    """
    if (inherited := activated("grpc")) is not None:
        listener = inherited
    elif host.startswith(_UNIX):
        listener = _bind_unix(host.removeprefix(_UNIX))
    else:
        listener = bind(host, port, backlog=_BACKLOG)
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket, host: str) -> str:
    """Return the address of a listening socket, as clients write it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"{_UNIX}{name}"
    return with_port(name[0] if _is_activated() else host, name[1])


def activated(name: str) -> socket.socket | None:
    """Return the listening socket that systemd passed on to this very process; None without one.

    Args:
        name: its FileDescriptorName: "http", or "grpc", which is any other one, too.
    """
    if not _is_activated():
        return None
    number = int(os.environ.get("LISTEN_FDS", 0))
    names = os.environ.get("LISTEN_FDNAMES", "grpc").split(":")[:number]
    for i, each in enumerate(names):
        if (each == "http") == (name == "http"):
            return socket.socket(fileno=_FIRST_INHERITED + i)
    return None


def _is_activated() -> bool:
    return os.environ.get("LISTEN_PID") == str(os.getpid())


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
