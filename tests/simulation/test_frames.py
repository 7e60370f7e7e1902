"""The table of frames in and frames out, by a simulated server whose reads are cut anywhere."""

from random import Random

import pytest

from serving.transports.port_limits import PortLimits
from tests.http2.frames import CASES, LIMITS, names_of
from tests.simulation.clients import UNLIMITED, Client
from tests.simulation.simulation import Simulation

ROWS = [case for case in CASES if case.is_for("server")]


class Peer(Client):
    """Sends the bytes of a case, and keeps what comes."""

    name = "peer"

    def __init__(self, simulation, case):
        super().__init__(simulation, len(simulation.clients), Random(case.number))
        self.received = b""
        self.link.calm()  # all has come before it leaves
        self.link.cut_share = 0.5
        self.queue(case.opened)
        simulation.after(20.0, self.leave, "close")

    def arrived(self):
        self.received += self.link.down.pop(UNLIMITED)
        if self.link.down.is_ended and not self.link.down.buffer:
            self.leave("close")


@pytest.fixture(scope="module")
def peers():
    simulation, found = (
        Simulation(10, [], limits=PortLimits(max_message_bytes=5_000, http2=LIMITS)),
        {},
    )

    def come():
        for case in ROWS:
            simulation.clients.append(Peer(simulation, case))
            found[case.number] = simulation.clients[-1]

    simulation.after(0.0, come)
    assert not simulation.run(), "others are served as at the start"
    return found


@pytest.mark.parametrize("case", ROWS, ids=[" ".join(case[:2]) for case in ROWS])
def test_case_is_answered_as_by_the_engine(peers, case):
    assert not case.fault(names_of(peers[case.number].received))
