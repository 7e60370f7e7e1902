"""One server's address."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where to connect to."""

    host: str
    port: int
    authority: str
    """As it was written: "host:port"."""


def place_of(address: str) -> Place | None:
    """Return the place of an address, or None for several and for gRPC's other targets."""
    host, _, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    is_one = bool(bare) and port.isdecimal() and not set(address) & set("/,")
    if not is_one or (":" in bare and bare == host):
        return None
    return Place(bare, int(port), address)
