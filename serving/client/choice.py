"""Which library carries a client's calls."""

import ipaddress
import select
from importlib.util import find_spec

from serving.client.place import Place, place_of
from serving.config import TransportName
from serving.errors import ConfigurationError
from serving.installation import install


def choose(transport: TransportName, target: str) -> Place | None:
    """Return where h2 connects to, or None for grpcio.

    Args:
        transport: "h2", "grpcio", or "auto": h2 where it is installed, for one address that is
            not a name. A name may stand for several servers, among which grpcio takes turns.
        target: see `Connection`.

    Raises:
        ConfigurationError: h2 was requested, and is not installed or not for this target.
    """
    if transport == "grpcio":
        return None
    place = place_of(target)
    is_installed = find_spec("ngh2") is not None and hasattr(select, "poll")  # not on Windows
    if transport == "auto":
        return place if place and is_installed and _is_address(place.host) else None
    if transport != "h2":
        raise ConfigurationError(f"transport must be auto, h2 or grpcio, got {transport!r}")
    if place is None:
        raise ConfigurationError(
            f"transport h2 takes one host:port, got {target!r}: use transport grpcio for several "
            "servers and gRPC's other targets"
        )
    if not is_installed:
        raise ConfigurationError(f"transport h2 needs ngh2 and no Windows: {install('fast')}")
    return place


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost"
    return True
