"""The end of a server in simulated time: who may hold it up, and who loses nothing by it."""

from random import Random

import pytest

from serving.http2 import frames
from serving.http2.frames import CONNECTION, END_HEADERS, END_STREAM, PREFACE, frame, word
from serving.http2.hpack import encode_literally
from serving.protocols.framing import frame as framed
from tests.simulation.clients import UNARY, Client
from tests.simulation.simulation import DRAIN_S, Simulation
from tests.simulation.web import Browser

HEALTH = "/grpc.health.v1.Health"
HOLD_S = 3.0
"""The longest that a caller who takes no answers may hold up a stop."""


class Unready(Client):
    """Makes one call, and gives its answer no window."""

    name = "unready"

    def __init__(self, simulation, path, message):
        super().__init__(simulation, len(simulation.clients), Random(0))
        self.link.calm()
        fields = (
            (b":method", b"POST"), (b":scheme", b"http"), (b":path", path.encode()),
            (b"te", b"trailers"), (b"content-type", b"application/grpc"),
        )  # fmt: skip
        no_window = frames.INITIAL_WINDOW_SIZE.to_bytes(2, "big") + bytes(4)
        self.queue(
            PREFACE
            + frame(frames.SETTINGS, 0, CONNECTION, no_window)
            + frame(frames.HEADERS, END_HEADERS, word(1), encode_literally(fields))
            + frame(frames.DATA, END_STREAM, word(1), framed(message))
        )


def stopped(begin):
    """Run a simulation with more callers, who come a second before its end; return it."""
    simulation = Simulation(10, [])
    simulation.after(DRAIN_S, begin, simulation)
    assert not simulation.run()
    return simulation


def image_message(simulation):
    from digit_classifier.wire import encode_request

    return encode_request(simulation.image())


@pytest.mark.parametrize(
    ("path", "hold_s"),
    [(f"{HEALTH}/Watch", 1.0), (f"{HEALTH}/Check", HOLD_S), (UNARY, HOLD_S)],
)
def test_caller_who_takes_no_answer_hardly_delays_a_stop(path, hold_s):
    """Health needs no token: anybody may try."""

    def begin(simulation):
        message = image_message(simulation) if path == UNARY else b""
        simulation.clients.append(Unready(simulation, path, message))

    simulation = stopped(begin)
    assert simulation.drained_s - simulation.draining_s < hold_s


class Asking(Browser):
    """Sends its next request once it has the answer to the last, until it is told to close."""

    answered = 0

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.statuses: set[int] = set()

    def _judge(self, request, status, answer):
        super()._judge(request, status, answer)
        self.statuses.add(status)

    def arrived(self):
        before = len(self.requests)
        super().arrived()
        self.answered += before - len(self.requests)
        if before and not self.requests and not (self.is_over or self.is_last):
            self.simulation.after(self.random.random() * 0.05, self.begin_next)

    def begin_next(self):
        if not self.is_over:
            self.begin(is_quick=True)


@pytest.mark.parametrize("seed", range(8))
def test_keep_alive_callers_lose_no_request_at_a_stop(seed):
    """Each is between two requests, or waits for an answer, when the server begins to drain."""
    callers: list[Asking] = []

    def begin(simulation):
        for number in range(5):
            caller = Asking(simulation, len(simulation.clients), Random(f"{seed} {number}"))
            caller.link.calm()
            simulation.clients.append(caller)
            callers.append(caller)
            simulation.after(0.01 * number, caller.begin_next)

    stopped(begin)
    assert sum(caller.answered for caller in callers) > 30
    assert [len(caller.requests) for caller in callers] == [0] * 5
    assert all(caller.is_last for caller in callers), "they were told that it ends"
    assert not any(503 in caller.statuses for caller in callers), "what was on its way is answered"
