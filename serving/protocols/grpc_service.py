"""A gRPC service that an application adds."""

from collections.abc import Sequence
from typing import Any, Protocol

from serving.protocols.method import Method
from serving.router import Router


class GrpcService(Protocol):
    """A service of the gRPC port: a module, imported in the process of the server's loop."""

    @property
    def SERVICE(self) -> str:  # noqa: N802
        """Its full name, by which health and reflection know it."""

    @property
    def FILE(self) -> Any:  # noqa: N802
        """The `FileDescriptor` of the file that defines it."""

    def methods(self, router: Router, transport: str, /) -> Sequence[Method]:
        """Return its methods.

        Args:
            router: the models.
            transport: the name of the transport that answers.
        """

    def model_name(self, router: Router, /) -> str:
        """Return the model on which its health depends; "" for the server's alone."""
