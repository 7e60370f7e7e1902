"""SIGTERM under load, again and again, with a ledger on both sides: nothing accepted is lost."""

import json
import signal
from collections.abc import Sequence

import grpc

from serving.digits.wire import encode_request
from tests.support.load import ClosedLoop
from tests.support.processes import is_serving, paced_server, wait_until
from tests.support.servers import on_both
from tests.support.tickets import image_with

NUM_RESTARTS = 20
NUM_TICKETS = 100_000
"""More than one restart's load uses."""


def load_on(address, first_ticket=0):
    """A load in which call n carries ticket `first_ticket + n`."""
    return ClosedLoop(address, _Tickets(first_ticket), in_flight=64)


class _Tickets(Sequence[bytes]):
    """The requests of a load, made when they are sent."""

    def __init__(self, first):
        self._first = first

    def __len__(self):
        return NUM_TICKETS

    def __getitem__(self, number):
        return encode_request(image_with(self._first + number).tobytes())


@on_both
def test_restarts_under_load_lose_nothing(transport, tmp_path):
    path = tmp_path / "ledger.json"
    num_answered = num_refused = 0
    for _ in range(NUM_RESTARTS):
        options = {"service_s": 0.002, "max_batch_size": 16, "ledger_file": path}
        with paced_server(transport, **options) as server:
            loads = [load_on(server.address, number * NUM_TICKETS) for number in range(4)]
            with loads[0], loads[1], loads[2], loads[3]:
                loads[0].wait_for(100)
                assert server.stop() == 0
        codes: dict[int, grpc.StatusCode] = {}
        for number, load in enumerate(loads):
            assert len(load.calls) < NUM_TICKETS
            codes |= {number * NUM_TICKETS + call.number: call.code for call in load.calls}
        assert set(codes.values()) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        ran = dict(json.loads(path.read_text())["tickets"])
        answered = {ticket for ticket, code in codes.items() if code is grpc.StatusCode.OK}
        assert set(ran) == answered, "run but not answered, or the reverse"
        assert set(ran.values()) == {1}
        num_answered += len(answered)
        num_refused += len(codes) - len(answered)
    print(f"{transport}: {NUM_RESTARTS} drains, {num_answered} answered, {num_refused} refused")


def test_second_signal_ends_even_a_server_that_hangs():
    with paced_server() as server:
        server.tell("hold")
        with load_on(server.address) as load:
            wait_until(lambda: server.num_begun() > 0)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: not is_serving(server.address))
            assert server.stop() == 1
    assert {call.code for call in load.calls} == {grpc.StatusCode.UNAVAILABLE}


def test_server_that_hangs_ends_when_the_drain_has_taken_its_time():
    with paced_server(drain_s=0.5) as server:
        server.tell("hold")
        with load_on(server.address) as load:
            wait_until(lambda: server.num_begun() > 0)
            assert server.stop() == 1
    assert {call.code for call in load.calls} == {grpc.StatusCode.UNAVAILABLE}
