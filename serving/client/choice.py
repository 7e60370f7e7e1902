"""Which library carries a client's calls."""

import ipaddress
import os
import select

from serving.client.place import Place, place_of
from serving.config import TransportName
from serving.errors import ConfigurationError

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")
"""Variables of the environment by which grpcio connects through a proxy."""


def choose(transport: TransportName, target: str) -> Place | None:
    """Return where h2 connects to, or None for grpcio.

    Args:
        transport: "h2", "grpcio", or "auto": h2 for one address that is not a name, without a
            proxy, except on Windows. A name may stand for several servers, among which grpcio
            takes turns.
        target: see `Connection`.

    Raises:
        ConfigurationError: h2 was requested, and is not for this target or this system.
    """
    if transport == "grpcio":
        return None
    place = place_of(target)
    can_poll = hasattr(select, "poll")  # not on Windows
    if transport == "auto":
        has_proxy = any(map(os.environ.get, _PROXIES))
        return place if place and can_poll and not has_proxy and _is_address(place.host) else None
    if transport != "h2":
        raise ConfigurationError(f"transport must be auto, h2 or grpcio, got {transport!r}")
    if place is None:
        raise ConfigurationError(
            f"transport h2 takes one host:port, got {target!r}: use transport grpcio for several "
            "servers and gRPC's other targets"
        )
    if not can_poll:
        raise ConfigurationError("transport h2 does not run on Windows: use transport grpcio")
    return place


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True
