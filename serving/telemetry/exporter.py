"""The HTTP port: /metrics for Prometheus, /healthz and /readyz for probes, and nothing else.

One thread serves all connections and one makes the metrics page, for any number of callers.
"""

import asyncio
import http
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress

from serving.config import ServerConfig
from serving.system.address import bind, with_port
from serving.telemetry.report import Report

_MAX_CONNECTIONS = 64
"""One more closes the oldest, so idle connections can't keep a scraper out."""
_BACKLOG = 256
"""Connections that wait in the kernel to be accepted; past it they come a second late."""
_MAX_HEAD_BYTES = 8192
_TIMEOUT_S = 5.0
"""How long a connection may last; it has one request."""
_TEXT = "text/plain; charset=utf-8"

_Page = tuple[http.HTTPStatus, str, bytes]
"""Status, content type and body."""


class Exporter:
    """Listens at once, and answers 503 until `serve` is called."""

    def __init__(self, host: str, port: int) -> None:
        """Listen, on its own threads.

        Args:
            host: a name or an address.
            port: the TCP port; 0 lets the kernel choose.

        Raises:
            ConfigurationError: the address can't be bound.
        """
        self._report: Callable[[], Report] | None = None
        self._is_serving: Callable[[], bool] = lambda: False
        self._connections: list[asyncio.Task[None]] = []
        self._socket = bind(host, port, backlog=_BACKLOG)
        self.address = with_port(host, self._socket.getsockname()[1])
        self._loop = asyncio.new_event_loop()
        self._pages = ThreadPoolExecutor(1, "metrics-page")
        self._loop.set_default_executor(self._pages)
        self._is_closed = asyncio.Event()
        self._thread = threading.Thread(target=self._run, name="exporter", daemon=True)
        self._thread.start()

    def serve(self, report: Callable[[], Report], is_serving: Callable[[], bool]) -> None:
        """Start to answer.

        Args:
            report: returns what /metrics shows; called for each scrape, on the page's thread.
            is_serving: returns what /readyz shows; called on the other thread, so it must not
                block.
        """
        self._report, self._is_serving = report, is_serving

    def close(self) -> None:
        """Close the port and its connections."""
        self._loop.call_soon_threadsafe(self._is_closed.set)
        self._thread.join()
        self._pages.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        with self._socket:
            self._loop.run_until_complete(self._listen())
        self._loop.close()

    async def _listen(self) -> None:
        server = await asyncio.start_server(
            self._accept, sock=self._socket, limit=_MAX_HEAD_BYTES, backlog=_BACKLOG
        )
        await self._is_closed.wait()
        server.close()
        for task in self._connections:
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._connections) >= _MAX_CONNECTIONS:
            self._connections.pop(0).cancel()
        task = self._loop.create_task(self._converse(reader, writer))
        self._connections.append(task)
        task.add_done_callback(lambda task: self._end(task, writer))

    def _end(self, task: asyncio.Task[None], writer: asyncio.StreamWriter) -> None:
        """Close a connection; its task may have been cancelled before it began."""
        writer.transport.abort()
        with suppress(ValueError):  # it was removed as the oldest
            self._connections.remove(task)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request; anything else ends the connection without an answer."""
        with suppress(OSError, EOFError, TimeoutError, asyncio.LimitOverrunError):
            async with asyncio.timeout(_TIMEOUT_S):
                head = await reader.readuntil(b"\r\n\r\n")
                method, _, rest = head.partition(b" ")
                status, kind, body = await self._page(rest.partition(b" ")[0], head)
                if method not in (b"GET", b"HEAD"):
                    status, kind, body = _page(http.HTTPStatus.METHOD_NOT_ALLOWED)
                writer.write(
                    f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
                    f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n".encode()
                )
                writer.write(b"" if method == b"HEAD" else body)
                await writer.drain()
                writer.write_eof()
                await (
                    reader.read()
                )  # unread bytes would reset the connection before the answer arrives

    async def _page(self, target: bytes, head: bytes) -> _Page:
        match target.partition(b"?")[0]:
            case b"/healthz":
                return _page(http.HTTPStatus.OK, "alive")
            case b"/readyz" if self._is_serving():
                return _page(http.HTTPStatus.OK, "SERVING")
            case b"/readyz":
                return _page(http.HTTPStatus.SERVICE_UNAVAILABLE, "NOT_SERVING")
            case b"/metrics" if report := self._report:
                return await asyncio.to_thread(_metrics, report, head)
            case b"/metrics":
                return _page(http.HTTPStatus.SERVICE_UNAVAILABLE, "starting")
        return _page(http.HTTPStatus.NOT_FOUND)


def _page(status: http.HTTPStatus, text: str = "") -> _Page:
    return status, _TEXT, f"{text or status.phrase}\n".encode()


def _metrics(report: Callable[[], Report], head: bytes) -> _Page:
    from serving.telemetry.exposition import encode

    kind, body = encode(report(), _header(head, b"accept"))
    return http.HTTPStatus.OK, kind, body


def _header(head: bytes, name: bytes) -> str:
    for line in head.split(b"\r\n")[1:]:
        key, _, value = line.partition(b":")
        if key.strip().lower() == name:
            return value.strip().decode("latin-1")
    return ""


@contextmanager
def exporting(config: ServerConfig) -> Iterator[Exporter | None]:
    """Open the exporter; None if the configuration disables it."""
    if config.metrics_port is None:
        yield None
        return
    exporter = Exporter(config.metrics_host, config.metrics_port)
    try:
        yield exporter
    finally:
        exporter.close()
