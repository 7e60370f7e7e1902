"""The engine's cases, frames in and frames out, by a whole server whose reads are cut anywhere."""

from random import Random

import pytest

from serving.http2.frames import PREFACE
from serving.transports.limits import PortLimits
from tests.serving.http2.test_frames import CASES, HELLO, LIMITS, names_of
from tests.simulation.clients import UNLIMITED, Client
from tests.simulation.simulation import Simulation

OTHERS = {"frames/10", "attacks/11", "http2/3.5/2"}
"""Cases whose call the application answers before they are over; of the last the port closes."""
TOLD = [
    case
    for case in CASES
    if case[3].startswith(("GOAWAY", "RST_STREAM", "PONG", "SETTINGS")) and case[0] not in OTHERS
]
"""Those whose expected frame is of the engine, not of the application."""


class Peer(Client):
    """Sends the bytes of a case, and keeps what comes."""

    name = "peer"

    def __init__(self, simulation, data):
        super().__init__(simulation, len(simulation.clients), Random(len(simulation.clients)))
        self.received = b""
        self.link.calm()  # all has come before it leaves
        self.link.cut_share = 0.5
        self.queue(data if data.startswith((PREFACE, b"INVALID")) else HELLO + data)
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
        for case in TOLD:
            simulation.clients.append(Peer(simulation, case[2]))
            found[case[0]] = simulation.clients[-1]

    simulation.after(0.0, come)
    assert not simulation.run(), "others are served as at the start"
    return found


@pytest.mark.parametrize("case", TOLD, ids=[" ".join(case[:2]) for case in TOLD])
def test_case_is_answered_as_by_the_engine(peers, case):
    number, _, _, expected = case
    names = names_of(peers[number].received)
    assert expected in names
    assert any(name.startswith("GOAWAY") for name in names) == expected.startswith("GOAWAY")
