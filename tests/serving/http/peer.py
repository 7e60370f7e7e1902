"""A caller over HTTP, on a connection of its own, without a library that corrects its bytes."""

import http.client
import json
from typing import NamedTuple
from urllib.parse import urlsplit

TIMEOUT_S = 20.0


class Reply(NamedTuple):
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self):
        return json.loads(self.body)


class HttpPeer:
    """Asks the server at a URL."""

    def __init__(self, url):
        self.url = url
        self._place = urlsplit(url)

    def ask(self, method, path, body=None, **headers):
        """Send a request and read the answer; underscores in header names stand for dashes."""
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

    def get(self, path, **headers):
        return self.ask("GET", path, **headers)

    def post(self, path, body=b"", **headers):
        return self.ask("POST", path, body, **headers)
