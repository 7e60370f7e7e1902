"""The HTTP port: uvicorn with its own event loop and thread, beside the gRPC transport."""

import asyncio
import logging
import ssl
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serving.config import ServerConfig
from serving.credentials.certificates import server_context
from serving.errors import Overloaded
from serving.model.pictures import PictureInputs
from serving.protocols.oip.methods import Queries
from serving.router import Router
from serving.system.address import bind, with_port
from serving.system.cores import usable_cores
from serving.transports.access_log import access_log
from serving.transports.auth import token_check
from serving.transports.http.app import make_app
from serving.transports.http.calls import Calls
from serving.transports.http.problems import problem
from serving.transports.http.recorder import Recorder

_log = logging.getLogger(__name__)
logging.getLogger("uvicorn").setLevel(logging.WARNING)  # INFO: a line for each start and stop

MAX_CONNECTIONS = 1024
"""The request of one more is refused, and its connection closed."""
_FIRST_REQUEST_S = 10.0
"""Seconds for a connection to send the headers of its first request."""
_KEEP_ALIVE_S = 30
_BACKLOG = 256
_LOOK_S = 0.01


class HttpServer:
    """Answers HTTP from `start` to `stop`."""

    def __init__(self, router: Router, queries: Queries, config: ServerConfig) -> None:
        """Bind the port; `start` begins to answer.

        Args:
            router: the models.
            queries: answers queries about the server and its models.
            config: address, TLS and tokens.

        Raises:
            ConfigurationError: the address can't be bound, or a certificate or token can't be used.
        """
        assert config.http_port is not None
        self._pictures = ThreadPoolExecutor(usable_cores(), "pictures")
        self._calls = Calls(router)
        check = token_check(config.security)
        inputs = PictureInputs(is_image=config.input == "image", labels=config.labels)
        app = make_app(router, self._calls, queries, check, self._pictures, inputs)
        if (log := access_log(config)) is not None:
            app = Recorder(app, log)
        self._log = log
        context = server_context(config.security, "http/1.1")
        # From here on callers wait instead of being refused.
        self._socket = bind(config.http_host, config.http_port, backlog=_BACKLOG)
        scheme = "http" if context is None else "https"
        self.address = with_port(config.http_host, self._socket.getsockname()[1])
        self.url = f"{scheme}://{self.address}"
        self._server = uvicorn.Server(_uvicorn_config(app, context))
        self._thread = threading.Thread(target=self._run, name="http", daemon=True)

    def start(self) -> None:
        """Start to answer."""
        self._thread.start()

    def refuse(self) -> None:
        """Refuse new calls as Unavailable; queries are answered."""
        self._calls.is_draining = True

    def drain(self, timeout_s: float) -> bool:
        """Wait until every accepted call has its outcome; `refuse` first, and end gRPC's calls.

        Returns:
            False if `timeout_s` seconds passed first.
        """
        end_s = time.monotonic() + timeout_s
        while self._calls.num_active:
            if time.monotonic() > end_s:
                return False
            time.sleep(_LOOK_S)
        return True

    def stop(self) -> None:
        """Answer the complete requests, close the port, and return when it is closed."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join()
        self._socket.close()
        self._pictures.shutdown(wait=False, cancel_futures=True)
        if self._log is not None:
            self._log.close()

    def _run(self) -> None:
        try:
            asyncio.run(self._server.serve([self._socket]))
        except Exception:
            _log.exception("the HTTP port failed")


def _uvicorn_config(app: Any, context: Callable[[], ssl.SSLContext] | None) -> uvicorn.Config:
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=5,
        backlog=_BACKLOG,
        ssl_context_factory=None if context is None else lambda *_: _renewing(context),
    )
    config.load()
    return config


def _renewing(newest: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    """Return a context that uses the newest certificate for each handshake."""
    first = newest()

    def replace(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = newest()

    first.sni_callback = replace
    return first


_CLOSING = {"Connection": "close"}


class _Protocol(HttpToolsProtocol):
    """Closes connections that never send a request, and refuses those that are too many.

    uvicorn's own timer starts after an answer, and its own limit answers in plain text.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._first = self.loop.call_later(_FIRST_REQUEST_S, transport.abort)

    def on_headers_complete(self) -> None:
        self._first.cancel()
        if len(self.connections) > MAX_CONNECTIONS:
            self.app = problem(Overloaded("too many connections"), _CLOSING)
        super().on_headers_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._first.cancel()
        super().connection_lost(exc)
