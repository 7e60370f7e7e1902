"""More calls than the model can take, in simulated time: no busy machine changes a figure."""

from collections import Counter
from random import Random

import pytest

from serving.config import BatchingConfig
from serving.http2.limits import Limits as Http2Limits
from serving.transports.port_limits import PortLimits
from tests.simulation.clients import UNARY, Call, Polite
from tests.simulation.network import Socket
from tests.simulation.simulation import BEGIN_S, Model, Simulation, rows_of

SERVICE_S, BATCH = 0.08, 8
CAPACITY = BATCH / SERVICE_S  # 100 images/s
LOAD_S, WARM_UP_S = 2.5, 0.5
READ_S = 0.01


def offer(factor, queue_capacity, timeout):
    """Offer a multiple of the capacity; return the share that is used in time, and all outcomes."""
    ended = offered(factor, queue_capacity, timeout)
    window = (BEGIN_S + WARM_UP_S, BEGIN_S + LOAD_S)
    good = sum(each.outcome == "0" and window[0] <= each.done_s < window[1] for each in ended)
    return good / (CAPACITY * (LOAD_S - WARM_UP_S)), Counter(each.outcome for each in ended)


def offered(factor, queue_capacity, timeout, halts=()):
    """Offer a multiple of the capacity to a server that halts for a while; return the calls.

    Args:
        factor: the multiple.
        queue_capacity: of the server, in rows.
        timeout: of each call, as gRPC writes it.
        halts: when it stands still, and for how long, in seconds.
    """
    batching = BatchingConfig(
        max_batch_size=BATCH, queue_capacity=queue_capacity, max_request_rows=4
    )
    limits = PortLimits(max_message_bytes=5_000, http2=Http2Limits(max_streams=10_000))
    simulation = Simulation(
        10, [], batching=batching, limits=limits, quick_rows=0, runners=1, poison_share=0.0
    )
    calls: list[Call | None] = []

    def call(client):
        calls.append(client.begin(UNARY, 1, timeout))
        client.flush()

    def come():
        for number in range(4):
            client = Polite(simulation, number, Random(number), is_quick=True)
            client.gives_up = False
            simulation.clients.append(client)
            for at in range(number, int(factor * CAPACITY * LOAD_S), 4):
                simulation.after(0.01 + at / (factor * CAPACITY), call, client)

    def halt(seconds):
        simulation.now_s += seconds
        simulation.busy_s += seconds
        simulation.thawed_s = simulation.now_s

    simulation.after(0.0, come)
    for at_s, seconds in halts:
        simulation.after(at_s, halt, seconds)
    assert not simulation.run()
    return [each for each in calls if each]


@pytest.fixture(autouse=True)
def steady(monkeypatch):
    """Let each run take as long."""

    def run(self, feeds):
        rows = [row.tobytes() for row in feeds["images"]]
        self.simulation.check_run(rows)
        self.simulation.spend(SERVICE_S)
        return [rows_of(rows, self.version)]

    monkeypatch.setattr(Model, "run", run)


@pytest.mark.parametrize("factor", [2, 10])
def test_goodput_holds_under_overload(factor):
    share, outcomes = offer(factor, 50, b"1S")
    assert share >= 0.95
    assert outcomes.keys() == {"0", "8"}


def test_callers_less_patient_than_the_queue_is_long_are_answered_in_time():
    """Served first come, first served, each would be reached when it is about to give up."""
    share, outcomes = offer(5, 500, b"300m")  # the queue is 5 s long
    assert share >= 0.8
    assert outcomes.keys() <= {"0", "4", "8"}


def test_callers_with_time_wait_no_longer_than_a_quarter_of_ten_seconds():
    """By default no objective says so, and there is room for all, who would wait for 10 s."""
    ended = offered(5, 16_384, b"60S")
    assert {each.outcome for each in ended} == {"0", "8"}
    waited_s = [each.done_s - each.sent_s for each in ended if each.outcome == "0"]
    assert 2.0 < max(waited_s) < 2.5 + 10 * SERVICE_S


def test_calls_that_a_program_has_in_flight_on_a_connection_are_answered(monkeypatch):
    """64, each of four rows: two thirds of a second of runs, of some ms each."""
    monkeypatch.setattr(f"{__name__}.SERVICE_S", 0.02)
    batching = BatchingConfig(max_batch_size=BATCH, max_request_rows=4)
    limits = PortLimits(max_message_bytes=5_000, http2=Http2Limits(max_streams=1_000))
    simulation = Simulation(
        10, [], batching=batching, limits=limits, quick_rows=0, runners=1, poison_share=0.0
    )
    client = Polite(simulation, 0, Random(0), is_quick=True)
    client.gives_up = False
    simulation.clients.append(client)
    calls: list[Call | None] = []

    def ask():
        calls.extend(client.begin(UNARY, 4, b"10S") for _ in range(64))
        client.flush()

    for wave in range(3):  # the first shows how long a row takes
        simulation.after(0.01 + wave, ask)
    assert not simulation.run()
    assert Counter(each.outcome for each in calls if each) == {"0": 3 * 64}


def test_calls_that_waited_unread_for_too_long_are_refused(monkeypatch):
    """Each read takes 10 ms and has a call or two; run in turn, nearly all would be late."""
    receive = Socket.recv_into

    def receive_slowly(self, buffer):
        num_bytes = receive(self, buffer)
        self.link.time.spend(0.0 if self.link.time.is_calm else READ_S)
        return num_bytes

    monkeypatch.setattr(Socket, "recv_into", receive_slowly)
    monkeypatch.setattr("serving.transports.loop.LEAST_BYTES", 256)
    monkeypatch.setattr("serving.transports.loop.TURN_S", 0.0)
    monkeypatch.setattr(f"{__name__}.SERVICE_S", 1e-4)
    limits = PortLimits(max_message_bytes=5_000, http2=Http2Limits(max_streams=1_000))
    simulation = Simulation(10, [], limits=limits, poison_share=0.0)
    calls: dict[bytes | None, list[Call | None]] = {b"200m": [], None: []}

    def come(timeout):
        client = Polite(simulation, len(simulation.clients), Random(0), is_quick=True)
        client.gives_up = False
        simulation.clients.append(client)
        simulation.after(0.1, send, client, timeout)

    def send(client, timeout):
        calls[timeout] += [client.begin(UNARY, 1, timeout) for _ in range(60)]
        client.flush()

    simulation.after(0.0, come, b"200m")
    simulation.after(5.0, come, None)
    assert not simulation.run()
    hasty, patient = ([each for each in some if each] for some in calls.values())
    assert len(hasty) == len(patient) == 60
    outcomes = Counter(each.outcome for each in hasty)
    assert outcomes.keys() == {"0", "8"}
    assert outcomes["8"] >= 30
    assert {each.outcome for each in patient} == {"0"}, "who has no deadline is not late"
