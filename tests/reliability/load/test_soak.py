"""Minutes of good and bad callers together: memory, files and threads do not grow.

Of 100 calls 70 are good, 15 cancelled, 5 have deadlines too short, 5 are malformed, and 5 end with
a new connection. The same test finds a leak that is planted.
"""

import time
from collections import Counter
from typing import Protocol

import grpc
import pytest

from digit_classifier.wire import decode_response, encode_request
from tests.reliability.conftest import soak_s
from tests.support.fakes import image_with
from tests.support.load import OWN_CONNECTION
from tests.support.raw import CLASSIFY, TIMEOUT_S
from tests.support.servers import Footprint, paced_server, running_server

KINDS = ("good", "cancelled", "hasty", "malformed", "reconnecting")
WEIGHTS = (70, 15, 5, 5, 5)
MAX_GROWTH_BYTES = 8 << 20
ROUND = 50
"""Calls in flight at once."""
EXPECTED = {
    "good": {grpc.StatusCode.OK},
    "cancelled": {grpc.StatusCode.CANCELLED, grpc.StatusCode.OK},
    "hasty": {
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.OK,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,  # its time would have passed in the queue
    },
    "malformed": {grpc.StatusCode.INVALID_ARGUMENT},
    "reconnecting": {grpc.StatusCode.OK},
}


class Callers:
    """All kinds of callers, on one connection that is now and then replaced."""

    def __init__(self, address, images, generator):
        self._address = address
        self._images = images
        self._generator = generator
        self._channel = self._connect()
        self.counts: Counter[str] = Counter()

    def run_for(self, duration_s):
        end_s = time.monotonic() + duration_s
        while time.monotonic() < end_s:
            self._round()

    def close(self):
        self._channel.close()

    def _connect(self):
        return grpc.insecure_channel(self._address, options=OWN_CONNECTION)

    def _round(self):
        method = self._channel.unary_unary(CLASSIFY)
        kinds = self._generator.choices(KINDS, WEIGHTS, k=ROUND)
        calls = [(kind, *self._begin(method, kind)) for kind in kinds]
        for kind, number, call in calls:
            code = call.code()
            assert code in EXPECTED[kind], (kind, code, call.details())
            if code is grpc.StatusCode.OK:
                digits = decode_response(call.result()).digits
                assert digits[0] == self._right_answer(number), "a wrong answer"
            self.counts[kind] += 1
        if "reconnecting" in kinds:
            self._channel.close()
            self._channel = self._connect()

    def _begin(self, method, kind):
        number = self._generator.randrange(len(self._images))
        data = encode_request(self._images[number].tobytes())
        if kind == "malformed":
            data = data[: self._generator.randrange(1, len(data))]
        call = method.future(data, timeout=0.002 if kind == "hasty" else TIMEOUT_S)
        if kind == "cancelled":
            call.cancel()
        return number, call

    def _right_answer(self, number):
        return number


class RealCallers(Callers):
    """They know the right answers."""

    def __init__(self, address, images, generator, digits):
        super().__init__(address, images, generator)
        self._digits = digits

    def _right_answer(self, number):
        return self._digits[number]


GIVEN_BACK_S = 5.0
"""How long memory that is free may take to go back to the kernel: a second, on an idle machine."""


class Soak(Protocol):
    """Callers of all kinds."""

    counts: Counter[str]

    def run_for(self, duration_s):
        """Call for so long."""


def assert_no_growth(pid, callers, duration_s):
    """Warm up for a sixth of the time, soak, compare a process; half-way, too, to show a trend."""
    callers.run_for(max(15.0, duration_s / 6))
    before = Footprint.of(pid)
    callers.run_for(duration_s / 2)
    halfway = Footprint.of(pid)
    callers.run_for(duration_s / 2)
    after, until_s = Footprint.of(pid), time.monotonic() + GIVEN_BACK_S
    while after.resident_bytes - before.resident_bytes > MAX_GROWTH_BYTES:
        if time.monotonic() > until_s:
            break
        time.sleep(0.2)
        after = Footprint.of(pid)
    growth = [(f.resident_bytes - before.resident_bytes) / (1 << 20) for f in (halfway, after)]
    print(
        f"{sum(callers.counts.values())} calls in {duration_s:.0f} s: resident "
        f"{before.resident_bytes / (1 << 20):.1f} MiB, {growth[0]:+.1f}, {growth[1]:+.1f}; "
        f"files {before.num_files} to {after.num_files}, "
        f"threads {before.num_threads} to {after.num_threads}, "
        f"gRPC's {before.num_grpc_threads} to {after.num_grpc_threads}"
    )
    assert after.resident_bytes - before.resident_bytes <= MAX_GROWTH_BYTES, "memory grew"
    assert after.num_files <= before.num_files + 2, "files grew"  # a connection being replaced
    assert after.num_threads <= before.num_threads, "threads grew"
    assert after.num_grpc_threads <= before.num_grpc_threads + 2, "gRPC's threads grew"


def test_soak_leaves_nothing_behind(models, images, classifier, generator):
    digits = classifier.classify(images).digits.tolist()
    with running_server(models) as server:
        callers = RealCallers(server.address, images, generator, digits)
        try:
            assert_no_growth(server.process.pid, callers, soak_s())
        finally:
            callers.close()
        assert server.stop() == 0


def test_soak_finds_a_planted_leak(generator):
    images = image_with(0).repeat(10, axis=0)
    images[:, 0] = range(10)
    with paced_server(leak_bytes=20_000) as server:
        callers = Callers(server.address, images, generator)
        with pytest.raises(AssertionError, match="memory grew"):
            assert_no_growth(server.process.pid, callers, 15.0)
        callers.close()
