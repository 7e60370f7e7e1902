"""Simulated callers over HTTP/1.1: they keep to it, so each request has one answer, in order."""

import json
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from serving.http_api.inference import Inference
from serving.http_api.queries import HttpQueries
from serving.transports.http_port import open_port
from serving.transports.http_routing import App
from serving.transports.port_limits import PortLimits
from tests.simulation.clients import UNLIMITED, Client

BODY_S, IDLE_S = 5.0, 20.0
_PAD = b" " * 5_000
"""Makes JSON so long that it is decoded elsewhere."""
_NUM_REPEATS = 6


class Workers:
    """Does work elsewhere, in the simulation's time; it may be killed in it."""

    def __init__(self, simulation):
        self._simulation = simulation

    def submit(self, owner, function, *args):
        simulation, future = self._simulation, Future[Any]()
        simulation.after(
            simulation.random.choice((1e-4, 0.01, 1.0)), self._work, future, function, args
        )
        return future

    def _work(self, future, function, args):
        if not future.set_running_or_notify_cancel():
            return
        try:
            future.set_result(function(*args))
        except Exception as err:
            future.set_exception(err)

    def close(self): ...


def open_web(simulation, queries):
    """Open the simulation's HTTP port on its loop."""
    pool = Workers(simulation)
    queried = HttpQueries(simulation.router, queries, pool).routes()
    routes = [*queried, *Inference(simulation.router, 1 << 20).routes()]
    limits = PortLimits(max_message_bytes=5_000, max_connections=8, message_s=BODY_S, idle_s=IDLE_S)
    app = App(routes, None, ("sim",), [])
    return open_port(simulation.loop, simulation.web, app, simulation.router, limits, pool)


def _body_of(images, *, as_bytes):
    """Return the JSON of a request, and the bytes behind it."""
    rows = b"".join(images)
    tensor = {"name": "images", "datatype": "UINT8", "shape": [len(images), len(images[0])]}
    if not as_bytes:
        return json.dumps({"inputs": [tensor | {"data": [*rows]}]}).encode(), b""
    tensor["parameters"] = {"binary_data_size": len(rows)}
    content = {"inputs": [tensor], "parameters": {"binary_data_output": True}}
    return json.dumps(content).encode(), rows


@dataclass(eq=False)
class Request:
    """A request and its fate."""

    number: int
    images: list[bytes]
    version: str
    timeout_s: float
    sent_s: float
    end: int = 0
    """Where it ends in the client's bytes."""
    status: int = 0


class Browser(Client):
    """Sends requests, some of them ahead of the answers to earlier ones, some of them slowly."""

    name = "browser"

    def __init__(self, simulation, number, random):
        super().__init__(simulation, number, random, simulation.web)
        self.requests: deque[Request] = deque()
        self.came = b""
        self.is_last = self.is_writing = False
        self.sends_bytes = number % 2 == 1
        """Whether its requests are bytes, and repeat one another up to their rows."""
        self.num_more = _NUM_REPEATS if self.sends_bytes else 0
        """How many more requests it sends, each after the answer to the last."""
        self.tell("comes")

    def act(self, kind):
        if kind == "calls":
            for _ in range(self.random.choice((1, 1, 3, 12))):
                self.begin()

    def begin(self, *, is_quick=False):
        simulation, random = self.simulation, self.random
        if self.is_over or self.is_last or self.is_writing:
            return None
        images = [
            simulation.image()
            for _ in range(
                1 if is_quick else random.choice((1, 1, self.simulation.batching.max_request_rows))
            )
        ]
        timeout_s = float("inf") if is_quick else random.choice((0.001, 0.3, 30.0, float("inf")))
        request = Request(
            simulation.count(), images, random.choice(("", "", "2")), timeout_s, simulation.now_s
        )
        if is_quick or self.sends_bytes:
            request.version = ""
        if self.sends_bytes:
            request.timeout_s = float("inf")
        text, rows = _body_of(images, as_bytes=self.sends_bytes)
        if random.random() < 0.2 and not self.sends_bytes:
            text += _PAD
        path = f"/v2/models/digits{'/versions/2' if request.version else ''}/infer"
        head = f"POST {path} HTTP/1.1\r\nhost: sim\r\ncontent-length: {len(text) + len(rows)}\r\n"
        if self.sends_bytes:
            head += f"inference-header-content-length: {len(text)}\r\n"
        if request.timeout_s < float("inf"):
            head += f"request-timeout: {request.timeout_s}\r\n"
        if random.random() < 0.1 and not is_quick:
            head, self.is_last = head + "connection: close\r\n", True
        data = head.encode() + b"\r\n" + text + rows
        request.end = self.num_queued + len(data)
        self.tell(
            f"begins request {request.number}: {len(images)} images within {request.timeout_s:g} s"
        )
        self.requests.append(request)
        if random.random() < 0.2 and not is_quick:
            at, pause_s = random.randrange(len(data)), random.choice((0.01, 1.0, 8.0))
            self.is_writing = True
            self.queue(data[:at])
            simulation.after(pause_s, self._rest, data[at:])
        else:
            self.queue(data)
        return request

    def probe(self):
        """Be served as the first caller was."""
        self.link.calm()
        request = self.begin(is_quick=True)
        self.simulation.require(request, "a new browser has no connection")
        self.simulation.after(4.9, lambda: self.simulation.require(
            request and request.status == 200, "a new browser has no answer"))  # fmt: skip

    def check_answered(self):
        if not (self.is_over or self.link.is_reset or self.link.is_gone):
            left = [request.number for request in self.requests]
            self.simulation.require(not left, f"requests {left} were never answered")

    def _rest(self, data):
        self.is_writing = False
        if not self.is_over:
            self.queue(data)

    def arrived(self):
        self.came += self.link.down.pop(UNLIMITED)
        while not self.is_over and (end := self.came.find(b"\r\n\r\n")) >= 0:
            lines = self.came[:end].lower().split(b"\r\n")
            fields = dict(line.split(b": ", 1) for line in lines[1:])
            size = end + 4 + int(fields[b"content-length"])
            if len(self.came) < size:
                break
            body, self.came = self.came[end + 4 : size], self.came[size:]
            if not self.requests:
                self.simulation.fail(f"browser {self.number} gets an answer too many")
                return
            self.is_last = self.is_last or fields.get(b"connection") == b"close"
            size = int(fields.get(b"inference-header-content-length", len(body)))
            answer = json.loads(body[:size])
            if body[size:]:
                answer["outputs"][0]["data"] = np.frombuffer(body[size:], "<f4").tolist()
            self._judge(self.requests.popleft(), int(lines[0].split()[1]), answer)
        if self.link.down.is_ended and not self.link.down.buffer and not self.is_over:
            self.is_over = True
            for request in self.requests:
                self._judge_lost(request)
            self.link.up.shut()

    def _judge(self, request, status, answer):
        """Check that an answer is right, or an error that may be."""
        from tests.simulation.simulation import rows_of

        simulation, name = self.simulation, f"request {request.number}"
        self.tell(f"{name} is answered: {status}")
        request.status = status
        states = simulation.states_since(request.sent_s)
        took_s = simulation.now_s - request.sent_s
        if status == 200:
            version = answer["model_version"]
            served = simulation.served_since(request.sent_s, request.version)
            simulation.require(version in served, f"{name} is answered by version {version!r}")
            rows = rows_of(request.images, version).ravel().tolist()
            simulation.require(answer["outputs"][0]["data"] == rows, f"{name} has a wrong answer")
            if self.num_more and not self.requests:
                self.num_more -= 1
                self.begin(is_quick=True)
        elif status == 404:
            gone = [s for s in states if s is None or request.version not in ("", *s.versions)]
            simulation.require(gone, f"{name} finds no model, but there is one")
        elif status == 504:
            simulation.require(
                took_s >= request.timeout_s, f"{name} is said to be late, but is not"
            )
        elif status == 500:
            simulation.require(
                simulation.has_failed_since(request.sent_s), f"{name} fails, but its model does not"
            )
        elif status == 503:
            is_draining = simulation.now_s > simulation.draining_s
            simulation.require(
                is_draining or len(states) > 1, f"{name} is refused without a reason"
            )
        elif status == 400:
            simulation.require(took_s > BODY_S, f"{name} is refused: {answer}")
        else:
            simulation.require(status == 429, f"{name} ends with {status}: {answer}")

    def _judge_lost(self, request):
        """Check that a request without an answer was not taken."""
        simulation, link = self.simulation, self.link
        read_s = link.up.read_s(request.end)
        is_read = read_s is not None and read_s < (link.closed_s or simulation.now_s)
        is_late = request.sent_s + link.latency_s > simulation.drained_s
        may = self.is_last or link.is_reset or is_late or not is_read
        simulation.require(may, f"request {request.number} loses its connection")
