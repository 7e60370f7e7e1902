"""The part of an application that answers over HTTP."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from serving.config import ServerConfig
from serving.router import Router
from serving.transports.http_routing import Endpoint

Document = dict[str, Any]
"""A part of the OpenAPI document."""


class HttpApplication(Protocol):
    """Paths of the HTTP port, and pages: a module, imported in the process of the server's loop.

    So it imports nothing heavy: functions that do are called by `Exchange.work`, in processes.
    """

    @property
    def MODULES(self) -> Sequence[str]:  # noqa: N802
        """Imports of those processes, before they are forked."""

    @property
    def PAGES(self) -> Mapping[str, tuple[str, str]]:  # noqa: N802
        """Pages: a file's name and the text of links to it, by the end of a path that it needs."""

    @property
    def FILES(self) -> Path:  # noqa: N802
        """The folder of the pages and their files, which replace those of the same names before."""

    def routes(self, router: Router, config: ServerConfig, /) -> Iterable[Endpoint]:
        """Return the paths; none if no model can answer them.

        Raises:
            ConfigurationError: the options fit none of the models.
        """

    def describe(self, router: Router, config: ServerConfig, /) -> tuple[Document, Document]:
        """Return the paths as OpenAPI has them, and the schemas of their bodies and answers."""
