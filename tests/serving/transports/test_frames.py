"""The table of frames in and frames out, by a server's process: a connection a row."""

from contextlib import suppress

from serving.http2.frames import ACK, PING
from tests.http2.frames import CASES, names_of, of
from tests.support.servers import connected

LAST = b"the last"
PONG = of(PING, LAST, ACK, 0)


def played(address, data):
    """Send bytes and a PING; return the frames up to its answer, or to the connection's end."""
    received = b""
    with connected(address) as sock, suppress(ConnectionError):
        sock.sendall(data + of(PING, LAST, 0, 0))
        while PONG not in received and (part := sock.recv(1 << 16)):
            received += part
    return names_of(received)


def test_cases_are_answered_as_by_the_engine(server):
    rows = [case for case in CASES if case.is_for("server", "process")]
    played_by = ((case, played(server.address, case.opened)) for case in rows)
    faults = {" ".join(case[:2]): case.fault(names) for case, names in played_by}
    assert len(rows) > 180
    assert not {name: fault for name, fault in faults.items() if fault}
