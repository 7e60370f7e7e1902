"""The gRPC transports: `h2`, our own, and `grpcio`, the reference.

`auto` is h2: it answers many times as many calls, and withstands abuse and overload that grpcio
does not (SECURITY.md). A transport is imported when it is opened.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from serving.config import ServerConfig, TransportName
from serving.protocols.messages import max_request_bytes
from serving.protocols.method import Method
from serving.router import Router

if TYPE_CHECKING:
    from serving.transports.sockets.loop import Loop

_MAX_MESSAGE_BYTES = 64 << 20


class Transport(Protocol):
    """A server on one address, used from the event loop on which it was opened."""

    async def start(self) -> str:
        """Bind the port and start to answer; returns the address.

        Raises:
            ConfigurationError: the address can't be bound.
        """

    @property
    def loop(self) -> "Loop | None":
        """What may serve another port, too, once this one is served; None if nothing can."""

    @property
    def num_calls(self) -> int:
        """Calls in progress; from any thread."""

    async def beat(self) -> None:
        """Return once what answers calls has had its turn."""

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new calls as Unavailable, and answer the accepted ones.

        Returns:
            False if `timeout_s` seconds passed first.
        """

    async def stop(self, grace_s: float) -> None:
        """Close the port; remaining calls have `grace_s` seconds to end."""


Open = Callable[[Router, Sequence[Method], ServerConfig], Transport]


def _h2() -> Open:
    from serving.transports.h2.server import H2Server

    return H2Server


def _grpcio() -> Open:
    from serving.transports.grpcio.server import GrpcioServer

    return GrpcioServer


_TRANSPORTS: dict[TransportName, Callable[[], Open]] = {"h2": _h2, "grpcio": _grpcio}


def may_change(config: ServerConfig) -> bool:
    """Return whether other models may be served later."""
    return bool(config.reload_interval_s) or config.allow_repository_control


def open_transport(
    name: TransportName, router: Router, methods: Sequence[Method], config: ServerConfig
) -> Transport:
    """Prepare a transport; `start` binds.

    Args:
        name: "h2" or "grpcio".
        router: the models.
        methods: the methods to serve.
        config: address, TLS, tokens and the like.

    Raises:
        ConfigurationError: a certificate or a token can't be used.
    """
    return _TRANSPORTS[name]()(router, methods, config)


def choose_transport(name: TransportName) -> TransportName:
    """Return the name of the transport to open; resolves "auto"."""
    return "h2" if name == "auto" else name


def max_message_bytes(router: Router, *, may_change: bool = False) -> int:
    """Return the longest message that is read: for rows of no fixed size or large ones 64 MiB.

    Args:
        router: the models.
        may_change: whether others may come, whose rows are not known.
    """
    sizes = [route.tensors.row_bytes for route in router.routes.values()]
    if may_change or not sizes or not all(sizes):
        return _MAX_MESSAGE_BYTES
    most = max_request_bytes(router.batching.max_request_images, max(sizes))
    return min(most, _MAX_MESSAGE_BYTES)
