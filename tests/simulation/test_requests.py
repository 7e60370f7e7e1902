"""The table of bytes in and answers out, by a simulated server whose reads are cut anywhere."""

from random import Random

import pytest

from tests.corpus.requests import CASES, CLOSED, OPEN, answers_of
from tests.simulation.clients import UNLIMITED, Client
from tests.simulation.simulation import Simulation

COMES_S, LEAVES_S = 0.1, 0.5
"""A peer comes after each such time and stays for a while: fewer at once than the server takes, and
no longer than it waits for the rest of a request."""


class Peer(Client):
    """Sends the bytes of a case, and keeps what comes."""

    name = "peer"

    def __init__(self, simulation, case):
        number = len(simulation.clients)
        super().__init__(simulation, number, Random(case.name), simulation.web)
        self.received, self.is_closed = b"", False
        self.link.calm()  # all has come before it leaves
        self.link.cut_share = 0.5
        self.queue(case.data)
        simulation.after(LEAVES_S, self.leave, "close")

    def arrived(self):
        self.received += self.link.down.pop(UNLIMITED)
        if self.link.down.is_ended and not self.is_over:
            self.is_closed = True
            self.leave("close")


@pytest.fixture(scope="module")
def peers():
    simulation, found = Simulation(10, []), {}

    def come(cases):
        for case in cases:
            simulation.clients.append(Peer(simulation, case))
            found[case.name] = simulation.clients[-1]

    for number, case in enumerate(CASES):
        simulation.after(number * COMES_S, come, [case])
    assert not simulation.run(), "others are served as at the start"
    return found


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_case_is_answered_as_by_the_table(peers, case):
    peer = peers[case.name]
    answers, is_last = answers_of(peer.received)
    assert is_last == peer.is_closed
    end = CLOSED if peer.is_closed else OPEN
    assert not case._replace(end=CLOSED if case.end == CLOSED else OPEN).fault(answers, end)
