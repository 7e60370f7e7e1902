"""SIGTERM under load, again and again, with a ledger on both sides: nothing accepted is lost."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc

from serving.rpc.wire import encode_request
from tests.raw import CLASSIFY, TIMEOUT_S
from tests.reliability.processes import is_serving, paced_server, wait_until
from tests.reliability.tickets import image_with

NUM_RESTARTS = 20
IN_FLIGHT = 64
OPTIONS = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))


class Load:
    """Keeps calls in flight, each with a ticket of its own; comes again at once when refused."""

    def __init__(self, address: str, first_ticket: int) -> None:
        self._channel = grpc.insecure_channel(address, options=OPTIONS)
        self._method: Any = self._channel.unary_unary(CLASSIFY)
        self._lock = threading.Lock()
        self._next = first_ticket
        self._in_flight = threading.Semaphore(IN_FLIGHT)
        self._ended = threading.Event()
        self.outcomes: dict[int, grpc.StatusCode] = {}
        self.answered = threading.Semaphore(0)
        self._thread = threading.Thread(target=self._send)

    def _send(self) -> None:
        while not self._ended.is_set():
            self._in_flight.acquire()
            ticket, self._next = self._next, self._next + 1
            data = encode_request(image_with(ticket).tobytes())
            call = self._method.future(data, timeout=TIMEOUT_S)
            call.add_done_callback(lambda call, ticket=ticket: self._note(ticket, call))
        for _ in range(IN_FLIGHT):
            assert self._in_flight.acquire(timeout=TIMEOUT_S), "a call never ended"

    def _note(self, ticket: int, call: Any) -> None:
        code = call.code()
        with self._lock:
            self.outcomes[ticket] = code
        if code is grpc.StatusCode.OK:
            assert call.result()[:3] == bytes((0x0A, 1, ticket % 10))
            self.answered.release()
        self._in_flight.release()

    @contextmanager
    def running(self) -> Iterator["Load"]:
        self._thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            self._thread.join()
            self._channel.close()


def wait_for_answers(load: Load, number: int) -> None:
    for _ in range(number):
        assert load.answered.acquire(timeout=TIMEOUT_S)


def test_restarts_under_load_lose_nothing(transport: str, tmp_path: Path) -> None:
    path = tmp_path / "ledger.json"
    num_answered = num_refused = 0
    for restart in range(NUM_RESTARTS):
        options = {"service_s": 0.002, "max_batch_size": 16, "ledger_file": path}
        with paced_server(transport, **options) as server:
            loads = [Load(server.address, (restart * 4 + n) * 1_000_000) for n in range(4)]
            with loads[0].running(), loads[1].running(), loads[2].running(), loads[3].running():
                wait_for_answers(loads[0], 100)
                assert server.stop() == 0
        outcomes = {ticket: code for load in loads for ticket, code in load.outcomes.items()}
        assert set(outcomes.values()) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        ran = dict(json.loads(path.read_text())["tickets"])
        answered = {ticket for ticket, code in outcomes.items() if code is grpc.StatusCode.OK}
        assert set(ran) == answered, "run but not answered, or the reverse"
        assert set(ran.values()) == {1}
        num_answered += len(answered)
        num_refused += len(outcomes) - len(answered)
    print(f"{transport}: {NUM_RESTARTS} drains, {num_answered} answered, {num_refused} refused")


def test_second_signal_ends_even_a_server_that_hangs(transport: str) -> None:
    with paced_server(transport) as server:
        server.tell("hold")
        load = Load(server.address, 0)
        with load.running():
            wait_until(lambda: server.num_begun() > 0)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not is_serving(server.address))
            assert server.stop() == 1
    assert set(load.outcomes.values()) == {grpc.StatusCode.UNAVAILABLE}


def test_server_that_hangs_ends_when_the_drain_has_taken_its_time(transport: str) -> None:
    with paced_server(transport, drain_s=0.5) as server:
        server.tell("hold")
        load = Load(server.address, 0)
        with load.running():
            wait_until(lambda: server.num_begun() > 0)
            assert server.stop() == 1
    assert set(load.outcomes.values()) == {grpc.StatusCode.UNAVAILABLE}
