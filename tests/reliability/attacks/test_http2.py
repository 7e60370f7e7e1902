"""Raw HTTP/2 abuse: afterwards the server is well, and no engine ran for it."""

import itertools
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from serving.digits.protocol.wire import encode_request
from tests.reliability.attacks.h2_scripts import BROKEN_FRAMING, SCRIPTS
from tests.support.h2_connection import Connection
from tests.support.processes import Footprint, paced_server
from tests.support.raw import Raw
from tests.support.tickets import image_with

TIMEOUT_S = 20.0
_golden_tickets = itertools.count(1_000_000)


@pytest.fixture(scope="module")
def victim(transport):
    with paced_server(transport) as server:
        yield server


def assert_well(server):
    """One golden request is answered on a new connection; returns its ticket."""
    ticket = next(_golden_tickets)
    raw = Raw(server.address, ("grpc.use_local_subchannel_pool", 1))
    answer = raw.classify(encode_request(image_with(ticket).tobytes()))
    raw.channel.close()
    assert list(answer.digits) == [ticket % 10]
    assert server.process.poll() is None
    return ticket


@pytest.mark.parametrize("name", SCRIPTS)
def test_abuse_leaves_the_server_well_and_runs_nothing(victim, name):
    before = set(victim.ledger())
    with Connection(victim.address, TIMEOUT_S) as connection:
        SCRIPTS[name](connection)
        connection.read()
        ticket = assert_well(victim)  # beside the abuse, too
    statuses = {code for code in grpc.StatusCode if code.value[0] in connection.statuses.values()}
    print(name, sorted(status.name for status in statuses))
    assert grpc.StatusCode.UNKNOWN not in statuses
    assert grpc.StatusCode.INTERNAL not in statuses or name in BROKEN_FRAMING
    assert set(victim.ledger()) - before == {ticket}


def test_a_thousand_idle_connections_cost_little_and_hold_up_nobody(victim):
    before = Footprint.of(victim.process.pid)
    connections = [Connection(victim.address, TIMEOUT_S) for _ in range(1000)]
    for connection in connections:
        connection.open()
    for connection in connections:
        connection.read(quiet_s=0.001)
    assert_well(victim)
    growth = Footprint.of(victim.process.pid).resident_bytes - before.resident_bytes
    print(f"{growth / 1024_000:.1f} KiB a connection")
    assert growth < 1000 * 64 * 1024
    for connection in connections:
        connection.socket.close()
    assert_well(victim)


def test_a_hundred_abusers_at_once_leave_the_server_well(victim):
    def abuse(name):
        with Connection(victim.address, TIMEOUT_S) as connection:
            SCRIPTS[name](connection)

    names = list(itertools.islice(itertools.cycle(SCRIPTS), 100))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(abuse, names))
    assert_well(victim)
    assert victim.stop() == 0
