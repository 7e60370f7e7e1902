"""The gRPC transports: `h2`, our own, and `grpcio`, the reference.

`auto` is h2: it answers many times as many calls, and withstands abuse and overload that grpcio
does not (docs/limits.md). The latter is imported when it is opened.
"""

from collections.abc import Sequence
from typing import Any, Protocol

from serving.config import ServerConfig
from serving.protocols.method import Method
from serving.router import Router
from serving.transports.h2_server import H2Server


class ServerTransport(Protocol):
    """A server on one address, used from the event loop on which it was opened."""

    async def start(self) -> str:
        """Bind the port and start to answer; returns the address.

        Raises:
            ConfigurationError: the address can't be bound.
        """

    @property
    def loop(self) -> Any:
        """The `Loop` that may serve another port, too, once this one is served."""

    @property
    def num_calls(self) -> int:
        """Calls in progress; from any thread."""

    async def beat(self) -> None:
        """Return once the loop that answers calls has had a turn."""

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new calls as Unavailable, and answer the accepted ones.

        Returns:
            False if `timeout_s` seconds passed first.
        """

    async def stop(self, grace_s: float) -> None:
        """Close the port; remaining calls have `grace_s` seconds to end."""


def open_transport(
    router: Router, methods: Sequence[Method], config: ServerConfig
) -> ServerTransport:
    """Prepare the transport that `config` names, to serve methods; `start` binds.

    Raises:
        ConfigurationError: a certificate or a token can't be used.
    """
    if config.transport == "grpcio":
        # Late: grpcio takes 30 ms to import.
        from serving.transports.grpcio_server import GrpcioServer

        return GrpcioServer(router, methods, config)

    return H2Server(router, methods, config)
