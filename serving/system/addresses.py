"""Addresses as texts: targets of clients, hosts with ports, and why one can't be listened on."""

import errno
import ipaddress
import logging
import os
import socket
from collections.abc import Callable, Collection, Sequence
from itertools import filterfalse
from typing import TypeVar

from serving.errors import ConfigurationError

_log = logging.getLogger(__name__)
_Opened = TypeVar("_Opened")
_REASONS = {
    errno.EADDRNOTAVAIL: "this machine has no such address",
    errno.EAFNOSUPPORT: "this machine has no such kind of address",
    errno.EACCES: "permission denied",
}
_FIRST_FREE_PORT = 1024
"""Ports below need a privilege."""
_EVERY = {"0.0.0.0": "127.0.0.1", "[::]": "localhost"}
"""Addresses to listen on that are none to call, and one that is."""
_LOCAL = ("localhost", "127.0.0.1", "::1")
_SCHEMES = ("dns", "ipv4", "ipv6", "unix", "unix-abstract", "vsock", "xds")


def is_target(text: str) -> bool:
    """Return whether a text is HOST:PORT, several, or another target of gRPC's by its scheme."""
    scheme, colon, _ = text.partition(":")
    if "/" in text or scheme in _SCHEMES:
        return bool(colon) and scheme in _SCHEMES
    parts = [part.strip().rpartition(":") for part in text.split(",") if part.strip()]
    return bool(parts) and all(host and port.isdecimal() for host, _, port in parts)


def with_port(host: str, port: int) -> str:
    """Write host and port as one word; an IPv6 address gets its brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def reached(address: str, names: Sequence[str] = ()) -> str:
    """Return how a caller on this machine reaches an address that is listened on.

    Args:
        address: HOST:PORT, or unix:PATH.
        names: those of the server's certificate; callers accept no other.

    Returns:
        The same; or with another host, where it is no address to call or is none of the names.
    """
    if address.startswith("unix:"):
        return address
    bound, _, port = address.rpartition(":")
    host = _EVERY.get(bound, bound)
    if not names or host.strip("[]") in names:
        return f"{host}:{port}"
    is_local = bound in _EVERY or host.strip("[]") in _LOCAL
    local = [name for name in _LOCAL if is_local and name in names]
    first, *_ = (*local, *filterfalse(_is_address, names), *names)
    return with_port(first.replace("*", "<name>"), int(port))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def is_named(host: str, names: Collection[str]) -> bool:
    """Return whether a request's host is an address or one of these names; "*" is any.

    Else a web page could have its own name point here, and read the answers.
    """
    name = host.lower()
    name = name[1:].partition("]")[0] if name[:1] == "[" else name.partition(":")[0]
    return name in names or "*" in names or _is_address(name)


def cannot_listen(host: str, port: int, error: OSError | ValueError) -> ConfigurationError:
    """Build the error for an address that can't be bound, with the reason in plain words."""
    if isinstance(error, OSError) and error.errno == errno.EADDRINUSE:
        return ConfigurationError(f"can't listen on {with_port(host, port)}: the port is taken")
    if isinstance(error, socket.gaierror | ValueError):
        reason = f"the name {host!r} can't be resolved"
    else:
        number = error.errno or 0
        reason = _REASONS.get(number) or os.strerror(number)
        if number == errno.EACCES and port < _FIRST_FREE_PORT:
            reason += ", ports below 1024 need root or CAP_NET_BIND_SERVICE"
    return ConfigurationError(f"can't listen on {with_port(host, port)}: {reason}")


def first_free(open_port: Callable[[int], _Opened], ports: Sequence[int], option: str) -> _Opened:
    """Open the first of these ports that is not taken; log a warning if it is a later one.

    Args:
        open_port: opens a port; raises the error of `cannot_listen`.
        ports: at least one.
        option: the option of the command line that names another one.

    Raises:
        ConfigurationError: all are taken, or one can't be bound for another reason.
    """
    for port in ports:
        try:
            opened = open_port(port)
        except ConfigurationError as err:
            is_taken = (
                isinstance(err.__cause__, OSError) and err.__cause__.errno == errno.EADDRINUSE
            )
            if not is_taken or port == ports[-1]:
                raise
            continue
        if port != ports[0]:
            _log.warning("port %d is taken: using %d; choose with %s", ports[0], port, option)
        return opened
    raise ValueError("no port to open")
