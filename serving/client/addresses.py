"""Server addresses as people write them, as gRPC's targets."""

import ipaddress
import socket

from serving.client.place import split
from serving.errors import ConfigurationError, Unavailable


def target_of(address: str) -> tuple[str, str | None]:
    """Return gRPC's target for an address, and the authority to send, None for gRPC's own choice.

    Args:
        address: any target of gRPC's, such as "host:port" or "dns:///name:port", or several
            "host:port" with commas between them.

    Raises:
        ConfigurationError: one of several addresses has no port.
        Unavailable: a name of several has no address.
    """
    scheme, colon, rest = address.partition(":")
    if scheme in ("ipv4", "ipv6") and colon:
        # Else the whole list is sent, which is not a valid :authority.
        return address, rest.partition(",")[0] if "," in rest else None
    if "," not in address or "/" in address:
        return address, None
    parts = [part.strip() for part in address.split(",") if part.strip()]
    places = [
        place for host, port in [_split(part) for part in parts] for place in _resolve(host, port)
    ]
    if any(":" in host for host, _ in places):  # gRPC's lists are of one family
        return "ipv6:" + ",".join(f"[{_mapped(host)}]:{port}" for host, port in places), parts[0]
    return "ipv4:" + ",".join(f"{host}:{port}" for host, port in places), parts[0]


def _split(part: str) -> tuple[str, int]:
    found = split(part)
    if found is None:
        raise ConfigurationError(f"expected addresses such as host:port, got {part!r}")
    return found


def _resolve(host: str, port: int) -> list[tuple[str, int]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except OSError as err:
        raise Unavailable(f"{host}:{port}: {err.strerror or err}") from err
    return [(str(place[4][0]), port) for place in found]


def _mapped(host: str) -> str:
    return host if ipaddress.ip_address(host).version == 6 else f"::ffff:{host}"
