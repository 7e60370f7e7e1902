"""A handler that ends its process on one call of a hundred, in a played world: how others fare.

Calls come at random times (Poisson), a process takes a fixed time for a job, and a start as long as
`START_S`; the clock moves from event to event.
"""

import heapq
import itertools

import numpy as np
import pytest

from serving.config import BatchingConfig
from serving.errors import ServingError
from serving.handlers.frames import Frame
from serving.handlers.pipeline import HandlerRuntime, Pipeline
from serving.handlers.signature import HandlerSignature
from serving.telemetry.metrics import Metrics
from tests.serving.handlers.test_pipeline import NUMBERS, TENSORS, Call
from tests.support.fakes import FakeCaller, FakeClock, FakeOwner

START_S, JOB_S, ROW_S, TIMEOUT_S = 0.3, 0.01, 0.0005, 5.0
SHARE = 0.01
"""Of calls that end their process."""
BAD = -1


class Played:
    """A process that ends on a bad call, and else answers after some time."""

    memory_bytes, start_s = 0, START_S

    def __init__(self, world):
        self.world, self.is_over = world, False

    def attach(self, owner, on_frame, on_end):
        self.on_frame, self.on_end = on_frame, on_end

    def send(self, fields, arrays=()):
        rows = arrays[0]
        self.world.at(JOB_S + ROW_S * len(rows), lambda: self.end_job(fields["job"], rows))

    def end_job(self, job, rows):
        if self.is_over:
            return
        if BAD in rows:
            self.is_over = True
            self.on_end("SIGSEGV")
        else:
            self.on_frame(Frame({"kind": "done", "job": job, "state": False}, [rows]))

    def kill(self):
        self.is_over = True

    close = kill


class Simulated:
    """A batcher, its processes, and the time."""

    def __init__(self, *, batching, num_processes):
        self.clock, self._due, self._numbers = FakeClock(), [], itertools.count()
        signature = HandlerSignature(
            name="H", methods=("predict",), inputs=NUMBERS, outputs=NUMBERS, batching=batching
        )
        parts = HandlerRuntime(
            signature, None, self, tuple, num_processes, None, None, lambda: None
        )
        self.batcher = Pipeline(("h", "1"), TENSORS, BatchingConfig(), Metrics(), parts)
        self.owner = FakeOwner(self.batcher, self.clock)
        self.owner.work()

    def launch(self, post, done):
        """Start a process, as a `Launcher` does."""
        self.at(START_S, lambda: done(Played(self)))

    def at(self, seconds, act):
        """Have something happen later."""
        heapq.heappush(self._due, (self.clock() + seconds, next(self._numbers), act))

    def until(self, end_s):
        """Let time pass."""
        while self._due and self._due[0][0] <= end_s:
            self.clock.now_s, _, act = heapq.heappop(self._due)
            act()
            self.owner.work()
        self.clock.now_s = end_s

    def outcomes(self, seed, rate, seconds, num_callers, share):
        """Make calls at some rate; return the bad ones', and the others' outcomes."""
        random = np.random.default_rng(seed)
        callers = [FakeCaller(f"{number}") for number in range(num_callers)]
        calls = [], []

        def tick():
            self.batcher.tick(self.clock())
            self.at(0.05, tick)

        tick()
        self.until(1.0)  # processes are there
        for number, wait_s in enumerate(random.exponential(1 / rate, int(rate * seconds))):
            self.until(self.clock() + wait_s)
            is_bad = random.random() < share
            caller = callers[number % num_callers]
            call = Call(
                BAD if is_bad else number, deadline_s=self.clock() + TIMEOUT_S, caller=caller
            )
            calls[is_bad].append(call)
            call.group.arrived_s = self.clock()
            if not self.batcher.submit(call.group):
                call.fail(call.group, ServingError("the queue is full"))
            self.owner.work()
        self.until(self.clock() + 2 * TIMEOUT_S)
        assert not self.batcher.is_busy
        return [call.outcome for call in calls[1]], [call.outcome for call in calls[0]]


def share_failed(rate, *, seed=0, seconds=300, num_callers=1, share=SHARE, **options):
    """Return the share of the good calls that fail."""
    bad, good = Simulated(**options).outcomes(seed, rate, seconds, num_callers, share)
    assert bad
    assert all(isinstance(each, ServingError) for each in bad)
    return sum(isinstance(each, ServingError) for each in good) / len(good)


@pytest.mark.parametrize("num_callers", [1, 16])
@pytest.mark.parametrize(
    ("batching", "fitting_rate"),
    [
        (False, 1 / (JOB_S + ROW_S + SHARE * START_S)),  # 74 calls/s
        (
            True,
            66,
        ),  # of 70 a twentieth fails: the longer the queue, the more share a bad call's run
    ],
)
def test_at_half_of_the_load_that_fits_few_others_fail(batching, fitting_rate, num_callers):
    """One bad call in a hundred, a start of 0.3 s; at most 2 % of the others may fail."""
    failed = share_failed(
        fitting_rate / 2, seconds=120, batching=batching, num_processes=1, num_callers=num_callers
    )
    assert failed <= 0.02


@pytest.mark.parametrize("num_callers", [1, 16])
def test_bad_call_of_a_batched_storm_costs_few_others(num_callers):
    """One of 8,300, at half of the 700 calls/s that fit."""
    options = {"batching": True, "num_processes": 1, "num_callers": num_callers}
    assert share_failed(350, seed=3, seconds=60, share=1 / 8300, **options) <= 0.02


def num_accepted(*, are_late_beside):
    """Return how many calls may wait, after a while of calls, and of late ones beside them."""
    world = Simulated(batching=False, num_processes=2)
    world.until(1.0)

    def call(timeout_s):
        request = Call(1, deadline_s=world.clock() + timeout_s, caller=FakeCaller(str(object())))
        taken = world.batcher.submit(request.group)
        world.owner.work()
        return taken

    for _ in range(100):
        call(TIMEOUT_S)
        world.until(world.clock() + JOB_S / 2)
        if are_late_beside:
            assert call(JOB_S / 2)
        else:
            call(TIMEOUT_S)
        world.until(world.clock() + JOB_S / 2 + ROW_S)
    return sum(call(1.0) for _ in range(200))


def test_calls_that_become_late_at_work_cost_the_others_no_room():
    assert num_accepted(are_late_beside=True) == num_accepted(are_late_beside=False) > 20
