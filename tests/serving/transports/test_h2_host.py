"""Clock and network are handed to the server: a simulated machine can stand in for this one."""

import selectors
import time

from serving import Classifier
from serving.protocols.digits_v1.wire import encode_request
from serving.system.host import Host
from serving.transports.h2.limits import Limits
from tests.support.h2_connection import Connection, message
from tests.support.h2_server import TIMEOUT_S, h2_server


class Hours:
    """A clock that a test sets forward, and a selector that says it was used."""

    def __init__(self) -> None:
        self.later_s = 0.0
        self.num_selectors = 0

    def clock(self) -> float:
        return time.monotonic() + self.later_s

    def selector(self) -> selectors.BaseSelector:
        self.num_selectors += 1
        return selectors.DefaultSelector()


def test_connection_is_idle_by_the_clock_of_its_host(classifier: Classifier) -> None:
    hours = Hours()
    host = Host(clock=hours.clock, selector=hours.selector)
    with (
        h2_server(classifier, Limits(max_message_bytes=4096), host=host) as address,
        Connection(address, TIMEOUT_S) as connection,
    ):
        connection.open()
        connection.call(1, message(encode_request(bytes(784))))
        assert connection.reply(1).status == 0
        hours.later_s = 3600.0
        connection.wait_closed()
    assert hours.num_selectors == 1
