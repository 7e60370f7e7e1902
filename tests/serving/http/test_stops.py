"""SIGTERM beside callers over HTTP/1.1 that keep their connections, and one who takes no answer."""

import http.client
import json
import struct
import threading
import time
from urllib.parse import urlsplit

from serving.http2.frames import CONNECTION, END_HEADERS, END_STREAM, PREFACE, frame, word
from serving.http2.hpack import encode_literally
from serving.protocols.framing import frame as framed
from tests.support.fakes import images_of
from tests.support.raw import WATCH
from tests.support.servers import connected, on_both, running_server

NUM_STOPS, NUM_CALLERS = 2, 10


class KeepAlive(threading.Thread):
    """Sends requests on one connection until an answer says that it is the last."""

    def __init__(self, url):
        super().__init__()
        self._place = urlsplit(url)
        self.statuses: list[int] = []
        self.lost = ""
        """How the connection ended before an answer."""
        self.has_begun = threading.Event()

    def run(self):
        body = json.dumps({"images": images_of(7).tolist()}).encode()
        fields = {"Content-Type": "application/json"}
        connection = http.client.HTTPConnection(self._place.hostname, self._place.port, timeout=20)
        try:
            while True:
                connection.request("POST", "/v1/digits", body, fields)
                answer = connection.getresponse()
                answer.read()
                self.statuses.append(answer.status)
                self.has_begun.set()
                if answer.getheader("connection") == "close":
                    return
        except (OSError, http.client.HTTPException) as err:
            self.lost = repr(err)
        finally:
            connection.close()


@on_both
def test_keep_alive_callers_lose_no_request_at_a_stop(models, transport):
    """With the kernel's sockets; tests/simulation/test_stop.py has more callers and moments."""
    callers: list[KeepAlive] = []
    for _ in range(NUM_STOPS):
        with running_server(models, "--transport", transport, "--http-port", "0") as server:
            now = [KeepAlive(server.facts["http"]) for _ in range(NUM_CALLERS)]
            for caller in now:
                caller.start()
            for caller in now:
                assert caller.has_begun.wait(20)
            assert server.stop() == 0
            for caller in now:
                caller.join()
            callers += now
    assert [caller.lost for caller in callers] == [""] * NUM_STOPS * NUM_CALLERS
    assert {status for caller in callers for status in caller.statuses} == {200}


@on_both
def test_watch_without_a_window_does_not_hold_a_stop(models, transport):
    """Anybody may watch health, without a token."""
    fields = (
        (b":method", b"POST"), (b":scheme", b"http"), (b":path", WATCH.encode()),
        (b":authority", b"localhost"), (b"te", b"trailers"),
        (b"content-type", b"application/grpc"),
    )  # fmt: skip
    no_window = frame(4, 0, CONNECTION, struct.pack(">HI", 4, 0))
    with (
        running_server(models, "--transport", transport, "--drain", "15") as server,
        connected(server.address) as caller,
    ):
        caller.sendall(PREFACE + no_window)
        caller.sendall(frame(1, END_HEADERS, word(1), encode_literally(fields)))
        caller.sendall(frame(0, END_STREAM, word(1), framed(b"")))
        caller.settimeout(0.3)
        received = b""
        while b"application/grpc" not in received and len(received) < 1000:  # the call has begun
            try:
                received += caller.recv(1000)
            except TimeoutError:
                break
        begun_s = time.monotonic()
        assert server.stop() == 0
        assert time.monotonic() - begun_s < 10.0, "less than --drain"
