"""The table of bytes in and answers out, by a server's process: a connection a row."""

import socket
from contextlib import suppress

import pytest

from tests.corpus.requests import CASES, CLOSED, LIVE, OPEN, WAITS, answers_of, get
from tests.support.servers import connected

pytestmark = pytest.mark.process


LAST = get(b"/v2", b"Connection: close")


def played(address, case):
    """Send a request, the bytes of a case and, where the connection stays open, a last request.

    Returns:
        The answers to the case, and the connection's end.
    """
    received = b""
    with connected(address) as sock, suppress(ConnectionError):
        sock.sendall(LIVE + case.data + (LAST if case.end == OPEN else b""))
        while part := sock.recv(1 << 16):
            received += part
            # A caller that leaves before is taken for one that wants no more answers.
            if case.end == WAITS and received.count(b"HTTP/1.1 ") > len(case.answers):
                sock.shutdown(socket.SHUT_WR)
    (first, *answers), is_last = answers_of(received)
    assert first == "200"
    if case.end == OPEN and is_last and answers[-1:] == ["200"]:
        return answers[:-1], OPEN
    return answers, CLOSED if is_last else WAITS


def test_cases_are_answered_as_by_the_table(http):
    faults = {case.name: case.fault(*played(http.url, case)) for case in CASES}
    assert len(faults) > 100
    assert not {name: fault for name, fault in faults.items() if fault}
