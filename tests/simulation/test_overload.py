"""More calls than the model can take, in simulated time: no busy machine changes a figure."""

from collections import Counter
from random import Random

import pytest

from serving.config import BatchingConfig
from serving.http2.frames import Limits as Http2Limits
from serving.transports.connections import PortLimits
from tests.simulation.clients import UNARY, Call, Polite
from tests.simulation.simulation import BEGIN_S, Model, Simulation, rows_of

SERVICE_S, BATCH = 0.08, 8
CAPACITY = BATCH / SERVICE_S  # 100 images/s
LOAD_S, WARM_UP_S = 2.5, 0.5


def offer(factor, queue_capacity, timeout):
    """Offer a multiple of the capacity; return the share that is used in time, and all outcomes."""
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

    simulation.after(0.0, come)
    assert not simulation.run()
    ended = [each for each in calls if each]
    window = (BEGIN_S + WARM_UP_S, BEGIN_S + LOAD_S)
    good = sum(each.outcome == "0" and window[0] <= each.done_s < window[1] for each in ended)
    return good / (CAPACITY * (LOAD_S - WARM_UP_S)), Counter(each.outcome for each in ended)


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
