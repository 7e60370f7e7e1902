"""The engine's cases, frames in and frames out, by a whole server whose reads are cut anywhere."""

from random import Random

import pytest

from serving.http2.frames import PREFACE
from serving.transports.limits import PortLimits
from tests.serving.http2.test_frames import CASES, HELLO, LIMITS, names_of
from tests.simulation.clients import UNLIMITED, Client
from tests.simulation.simulation import Simulation

OTHERS = {"attacks/11", "generic/3.8/1", "http2/3.5/2", "http2/7/1"}
"""A call that the application answers before the attack is one, bytes of no protocol, and peers
that say GOAWAY, whose connection the port closes."""
EARLY = "RST_STREAM NO_ERROR"
"""The application has answered a call that has not come whole: it is no call of gRPC."""
TOLD = [
    case
    for case in CASES
    if case[3].startswith(("GOAWAY", "RST_STREAM", "PONG", "SETTINGS")) and case[0] not in OTHERS
]
"""Those whose expected frame is of the engine, not of the application."""


class Peer(Client):
    """Sends the bytes of a case, and keeps what comes."""

    name = "peer"

    def __init__(self, simulation, name, data):
        super().__init__(simulation, len(simulation.clients), Random(name))
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
            simulation.clients.append(Peer(simulation, case[0], case[2]))
            found[case[0]] = simulation.clients[-1]

    simulation.after(0.0, come)
    assert not simulation.run(), "others are served as at the start"
    return found


@pytest.mark.parametrize("case", TOLD, ids=[" ".join(case[:2]) for case in TOLD])
def test_case_is_answered_as_by_the_engine(peers, case):
    number, _, _, expected = case
    names = names_of(peers[number].received)
    is_early = expected.startswith("RST_STREAM") and EARLY in names
    assert expected in names or is_early
    assert any(name.startswith("GOAWAY") for name in names) == expected.startswith("GOAWAY")
