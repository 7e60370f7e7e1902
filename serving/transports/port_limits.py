"""Limits of peers: sizes, numbers and times."""

from dataclasses import dataclass, field

from serving.config import ServerConfig
from serving.http2 import Limits
from serving.router import Router
from serving.system.cores import memory_limit

_MAX_MESSAGE_BYTES = 64 << 20
_LEAST_BUFFERED_BYTES, _NUM_LARGEST, _SHARE_OF_MEMORY = 64 << 20, 8, 8
"""Half-received messages: as many of the largest as this, up to a part of the memory."""
_SPARE_BYTES = 4096
"""Room for tags, lengths and names beside the rows of a message."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PortLimits:
    """Limits of peers."""

    max_message_bytes: int
    """The longest request message; a longer one is refused before its body is kept."""
    max_connections: int = 8_192
    """Open connections; one more replaces the longest idle one, or waits in the kernel."""
    http2: Limits = field(default_factory=Limits)
    """The engine's, for one connection; our own client has at most 512 calls on one."""
    max_buffered_bytes: int = 64 << 20
    """Half-received messages, all connections together; past it, large ones wait: see `Budget`."""
    max_unread_bytes: int = 16 << 20
    """Answers that one peer has not read, past which its calls are refused."""
    max_stream_unread_bytes: int = 256 << 10
    """Answers that one stream has not read, past which its requests are not read either."""
    handshake_s: float = 10.0
    """For TLS's handshake and HTTP/2's preface, in seconds."""
    message_s: float = 60.0
    """For a unary call's message, from its headers to its end, in seconds."""
    idle_s: float = 600.0
    """For a connection without calls, in seconds; less as `max_connections` comes near."""
    age_s: float = 0.0
    """A connection's age at which callers are asked to reconnect, in seconds; 0 is never."""


def max_message_bytes(router: Router, config: ServerConfig | None = None) -> int:
    """Return the longest message that is read: for rows of no fixed size or large ones 64 MiB.

    Else twice the largest that is answered: one that is a little too large gets a precise error.

    Args:
        router: the models.
        config: says whether others may come, whose rows are not known.
    """
    sizes = [route.tensors.row_bytes for route in router.routes.values()]
    may_change = config and (config.reload_interval_s or config.allow_repository_control)
    if may_change or not sizes or not all(sizes):
        return _MAX_MESSAGE_BYTES
    most = 2 * router.batching.max_request_rows * max(sizes) + _SPARE_BYTES
    return min(most, _MAX_MESSAGE_BYTES)


def max_buffered_bytes(router: Router, config: ServerConfig) -> int:
    """Return the most bytes of requests that have not come whole, of all callers together.

    Args:
        router: the models.
        config: the option, which takes precedence, and the number of processes.
    """
    if config.max_buffered_bytes:
        return config.max_buffered_bytes
    most = memory_limit() // _SHARE_OF_MEMORY // config.workers
    largest = max(max_message_bytes(router, config), config.max_json_bytes)
    return max(_LEAST_BUFFERED_BYTES, min(_NUM_LARGEST * largest, most))
