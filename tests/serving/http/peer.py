"""A caller over HTTP, on a connection of its own, without a library that corrects its bytes."""

import http.client
import json
from typing import Any, NamedTuple
from urllib.parse import urlsplit

TIMEOUT_S = 20.0


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class HttpPeer:
    """Asks the server at a URL."""

    def __init__(self, url: str) -> None:
        self.url = url
        self._place = urlsplit(url)

    def ask(self, method: str, path: str, body: Any = None, **headers: str) -> Reply:
        """Send a request and read the answer; underscores in header names stand for dashes."""
        assert self._place.hostname is not None
        connection = http.client.HTTPConnection(
            self._place.hostname, self._place.port, timeout=TIMEOUT_S
        )
        try:
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            connection.request(method, path, body, named)
            answer = connection.getresponse()
            received = {name.lower(): value for name, value in answer.getheaders()}
            return Reply(answer.status, received, answer.read())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, **headers)

    def post(self, path: str, body: Any = b"", **headers: str) -> Reply:
        return self.ask("POST", path, body, **headers)
