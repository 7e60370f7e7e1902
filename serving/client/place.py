"""One server's address."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Place:
    """Where to connect to."""

    host: str
    port: int
    authority: str
    """As it was written: "host:port"."""


def split(address: str) -> tuple[str, int] | None:
    """Return host, without brackets, and port of "host:port"; None if it is not that."""
    host, _, port = address.rpartition(":")
    bare = host.removeprefix("[").removesuffix("]")
    return (bare, int(port)) if bare and port.isdecimal() else None


def place_of(address: str) -> Place | None:
    """Return the place of an address, or None for several and for gRPC's other targets."""
    parts = split(address)
    if parts is None or set(address) & set("/,"):
        return None
    host, port = parts
    if ":" in host and not address.startswith("["):  # IPv6 without brackets
        return None
    return Place(host, port, address)
