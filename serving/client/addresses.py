"""A server's address, as a caller names it."""

import ipaddress
import os
import select
import socket
from dataclasses import dataclass

from serving.config import TransportName
from serving.errors import (
    ConfigurationError,
    Unavailable,
)

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Variables of the environment by which grpcio connects through a proxy."""


@dataclass(frozen=True, slots=True)
class Address:
    """One server's address."""

    host: str
    port: int
    authority: str
    """The text as it was written: "host:port"."""


def address_for_h2(transport: TransportName, target: str) -> Address | None:
    """Return where h2 connects to, or None for grpcio.

    Args:
        transport: "h2", "grpcio", or "auto": h2 for one IP address or localhost, without a
            proxy, except on Windows. Another name may stand for several servers, among which grpcio
            takes turns.
        target: see `BaseClient`.

    Raises:
        ConfigurationError: h2 was requested, and is not for this target or this system.
    """
    if transport == "grpcio":
        return None
    address = _single(target)
    can_poll = hasattr(select, "poll")  # not on Windows
    if transport == "auto":
        is_for_grpcio = not can_poll or any(map(os.environ.get, _PROXIES))
        return None if is_for_grpcio or address is None or _is_name(address.host) else address
    if transport != "h2":
        raise ConfigurationError(f"transport must be auto, h2 or grpcio, got {transport!r}")
    if address is None:
        raise ConfigurationError(
            f"transport h2 takes one host:port, got {target!r}: use transport grpcio for several "
            "servers and gRPC's other targets"
        )
    if not can_poll:
        raise ConfigurationError("transport h2 does not run on Windows: use transport grpcio")
    return address


def grpc_target(target: str) -> tuple[str, str | None]:
    """Return gRPC's form of a target, and the authority to send, None for gRPC's own choice.

    Args:
        target: any target of gRPC's, such as "host:port" or "dns:///name:port", or several
            "host:port" with commas between them.

    Raises:
        ConfigurationError: one of several addresses has no port.
        Unavailable: a name of several has no address.
    """
    scheme, colon, rest = target.partition(":")
    if scheme in ("ipv4", "ipv6") and colon:
        # Else the whole list is sent, which is not a valid :authority.
        return target, rest.partition(",")[0] if "," in rest else None
    if "," not in target or "/" in target:
        return target, None
    parts = [part.strip() for part in target.split(",") if part.strip()]
    wrong = [part for part in parts if _split(part) is None]
    if wrong:
        raise ConfigurationError(f"expected addresses such as host:port, got {wrong[0]!r}")
    found = [each for pair in map(_split, parts) if pair for each in _resolve(*pair)]
    if any(":" in host for host, _ in found):  # gRPC's lists are of one family
        mapped = ((host if ":" in host else f"::ffff:{host}", port) for host, port in found)
        return "ipv6:" + ",".join(f"[{host}]:{port}" for host, port in mapped), parts[0]
    return "ipv4:" + ",".join(f"{host}:{port}" for host, port in found), parts[0]


def _split(text: str) -> tuple[str, int] | None:
    """Return host, without brackets, and port of "host:port"; None if it is not that."""
    host, _, port = text.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    return (bare, int(port)) if bare and port.isdecimal() else None


def _single(target: str) -> Address | None:
    """Return the address of a target, or None for several and for gRPC's other targets."""
    parts = _split(target)
    if parts is None or set(target) & set("/,"):
        return None
    if ":" in parts[0] and not target.startswith("["):  # IPv6 without brackets
        return None
    return Address(*parts, target)


def _is_name(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host != "localhost"
    return False


def _resolve(host: str, port: int) -> list[tuple[str, int]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as err:
        raise Unavailable(f"{host}:{port}: {err.strerror or err}") from err
    return [(str(each[4][0]), port) for each in found]
