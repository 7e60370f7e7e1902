"""Listening sockets: bound here, or passed on by systemd."""

import errno
import os
import socket
import stat
from contextlib import suppress
from typing import Any, Protocol

from serving.errors import ConfigurationError
from serving.system.addresses import cannot_listen, with_port

BACKLOG = 1024
"""New connections that wait in the kernel."""
_UNIX = "unix:"
_FIRST_INHERITED = 3
"""The file descriptor of the first socket that systemd passes on (sd_listen_fds(3))."""


class SharedSocket(Protocol):
    """A socket on which several workers listen; see `serving.system.shared_port`."""

    @property
    def socket(self) -> socket.socket:
        """The socket."""

    @property
    def is_small(self) -> bool:
        """Whether no other worker has clearly fewer connections."""

    def note(self, number: int) -> None:
        """Tell the others how many this worker has."""

    def listen(self) -> None:
        """Listen again."""


shares: dict[tuple[str, int], SharedSocket] = {}
"""By host and port: where `bind` returns a socket that outlives this process, and is shared."""


def bind(host: str, port: int, *, backlog: int = 0) -> socket.socket:
    """Bind a TCP socket to the first address of a host that can be bound, or take an inherited one.

    Args:
        host: a name or an address.
        port: the TCP port; 0 lets the kernel choose.
        backlog: how many connections wait in the kernel; 0 does not listen yet. Two sockets may be
            bound to a port at the same time, but only one of them can listen.

    Raises:
        ConfigurationError: none can be bound, or the port is taken.
    """
    if (host, port) in shares:
        shared = shares[host, port].socket
        shared.listen(backlog)
        return shared
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as err:  # ValueError: not a host name, such as "a..b"
        raise cannot_listen(host, port, err) from err
    failure = OSError(errno.EADDRNOTAVAIL, "")
    for family, kind, protocol, _, address in found:
        try:
            return _bound(socket.socket(family, kind, protocol), address, backlog)
        except OSError as err:
            failure = err
    raise cannot_listen(host, port, failure) from failure


def _bound(listener: socket.socket, address: Any, backlog: int) -> socket.socket:
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        if backlog:
            listener.listen(backlog)
    except OSError:
        listener.close()
        raise
    return listener


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
        listener = bind(host, port, backlog=BACKLOG)
    listener.setblocking(False)
    return listener


def address_of(listener: socket.socket, host: str) -> str:
    """Return the address of a listening socket, as clients write it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"{_UNIX}{name}"
    return with_port(name[0] if is_activated() else host, name[1])


def activated(name: str) -> socket.socket | None:
    """Return the listening socket that systemd passed on to this very process; None without one.

    Args:
        name: its FileDescriptorName: "http", or "grpc", which is any other one, too.
    """
    if not is_activated():
        return None
    number = int(os.environ.get("LISTEN_FDS", 0))
    names = os.environ.get("LISTEN_FDNAMES", "grpc").split(":")[:number]
    for i, each in enumerate(names):
        if (each == "http") == (name == "http"):
            return socket.socket(fileno=_FIRST_INHERITED + i)
    return None


def is_activated() -> bool:
    """Return whether systemd has passed sockets on to this very process."""
    return os.environ.get("LISTEN_PID") == str(os.getpid())


def _bind_unix(path: str) -> socket.socket:
    try:
        if _is_abandoned(path):  # left behind by a server that was killed
            os.unlink(path)
        return _bound(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), path, BACKLOG)
    except OSError as err:
        raise ConfigurationError(f"can't listen on {_UNIX}{path}: {err.strerror or err}") from err


def _is_abandoned(path: str) -> bool:
    """Return whether a path is a socket without a listener."""
    with suppress(FileNotFoundError), socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if stat.S_ISSOCK(os.stat(path).st_mode):
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                return True
    return False
