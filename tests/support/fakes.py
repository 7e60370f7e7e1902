"""Stand-ins for a model, with gates instead of sleeps, and a clock that the test moves."""

import asyncio
import io
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from digit_classifier import PRETRAINED
from digit_classifier.predictions import DIGITS
from serving.batching.batcher import Batcher
from serving.batching.queue import ClientQueue, Queue
from serving.batching.run import Group, ResponseEncoder
from serving.config import Device
from serving.errors import ServingError
from serving.model import repository
from serving.router import Router
from serving.versions.served import ModelVersions

TIMEOUT_S = 10.0
"""How long a test waits for an expected event; only a failure takes that long."""


async def until(holds):
    """Poll on the event loop until something holds; raise TimeoutError if it never does."""
    async with asyncio.timeout(TIMEOUT_S):
        while not holds():
            await asyncio.sleep(0.002)


def images_of(*values):
    """(N, 784) uint8, each image filled with one value: the fakes answer `value % 10`."""
    return np.repeat(np.array(values, np.uint8)[:, None], DIGITS.image_bytes, axis=1)


def probabilities_of(images):
    """The fakes' answer: 0.91 for the image's first pixel modulo 10, 0.01 for the others."""
    probabilities = np.full((len(images), DIGITS.num_classes), 0.01, np.float32)
    probabilities[np.arange(len(images)), images[:, 0] % DIGITS.num_classes] = 0.91
    return probabilities


def classified(engine, images):
    """The answer of the engine of a classifier."""
    (probabilities,) = engine.run({"images": images})
    return probabilities


class FakeModel:
    """Answers at once, records its runs, and fails on the values in `poison`.

    A model, whose runs are long unless `inline_rows` says otherwise, and an engine.
    """

    signature = DIGITS
    tensors = DIGITS.tensors
    device: Device = "cpu"
    max_concurrent_runs: int | None = None
    inline_rows = 0
    enough_rows = 128
    answers = None

    def __init__(self, version="1", poison=frozenset()):
        self.version = version
        self.poison = poison
        self.ran: list[list[int]] = []
        """The first pixel of every image, run by run."""
        self.were_alone: list[bool] = []
        """Whether each offloaded run had the cores for itself."""

    def run(self, feeds):
        """As an engine."""
        return [self.classify(feeds["images"])]

    def stoppable(self, *, is_alone=False):
        """As an engine."""
        self.were_alone.append(is_alone)
        return self.run, self.end

    def end(self):
        """Called to end a run."""

    def classify(self, images):
        """As a loaded model."""
        values = images[:, 0].tolist()
        self.ran.append(values)
        if self.poison.intersection(values):
            raise RuntimeError("poisoned")
        return probabilities_of(images)


class GatedModel(FakeModel):
    """Each run announces itself and waits until the test opens the gate for it."""

    def __init__(self, version="1", poison=frozenset()):
        super().__init__(version, poison)
        self._started = threading.Semaphore(0)
        self._gate = threading.Semaphore(0)

    def classify(self, images):
        self._started.release()
        assert self._gate.acquire(timeout=TIMEOUT_S)
        return super().classify(images)

    def wait_until_running(self):
        assert self._started.acquire(timeout=TIMEOUT_S), "no run began"

    def open(self, num_runs=1):
        self._gate.release(num_runs)


class FakeCaller:
    """A connection without a socket."""

    def __init__(self, address=""):
        self.address = address
        self.streams: dict[Any, Any] = {}
        self.queues: dict[Queue, ClientQueue] = {}
        self.gave_up_s = -1e9

    def leave(self, *streams):
        """Cancel calls, as a caller does that gives up."""
        for stream in streams:
            del self.streams[stream]


class FakeRequest(ResponseEncoder):
    """A call of images, its encoder and its sink; keeps its outcome, and refuses a second one."""

    method: str | None = None

    def __init__(self, *values, deadline_s=1e9, caller=None):
        self.num_rows = len(values)
        self.outcome: tuple[str, list[int]] | ServingError | None = None
        self.caller = caller or FakeCaller()
        self.stream = len(self.caller.streams)
        self.caller.streams[self.stream] = self
        streams = [self.stream]
        message = images_of(*values).tobytes()
        self.group = Group(self.caller, streams, [message], self, self, 0.0, deadline_s)

    def encode(self, result, at, number):
        classes, step = result.classes or b"", self.num_rows
        starts = range(at, at + number * step, step)
        return [(result.version, list(classes[start : start + step])) for start in starts]

    def answer(self, group, responses, run):
        for response in responses:
            self._settle(response)

    def fail(self, group, error):
        self._settle(error)

    def _settle(self, outcome):
        assert self.outcome is None, "a second outcome"
        self.outcome = outcome
        self.caller.streams.pop(self.stream, None)

    def leave(self):
        """Cancel it, as a caller does that gives up."""
        self.caller.leave(self.stream)

    @property
    def digits(self):
        assert isinstance(self.outcome, tuple), self.outcome
        return self.outcome[1]


class Slots:
    """Gives each call of a group its own outcome."""

    def answer(self, group, responses, run):
        for slot, response in zip(group.slots, responses, strict=True):
            slot.answer(group, [response], run)

    def fail(self, group, error):
        for slot in group.slots:
            slot.fail(group, error)


def joined(calls, arrived_s=0.0, deadlines_s=None):
    """Return FakeRequests of one caller and as many rows as one group."""
    first, sink, deadline_s = calls[0], Slots(), min(deadlines_s or [1e9])
    streams: Any = [call.stream for call in calls]
    messages = [call.group.messages[0] for call in calls]
    times = arrived_s, deadline_s
    return Group(first.caller, streams, messages, first, sink, *times, calls, deadlines_s)


class FakeOwner:
    """Owns batchers on the test's thread: scheduled and posted callbacks run in `work`."""

    def __init__(self, target, clock=time.monotonic):
        """Own a batcher, or those of a router; calls go to the batcher or the router's digits."""
        self.batcher: Any = target.find("digits") if isinstance(target, Router) else target
        self.clock = clock
        self.num_forgotten = 0
        self._due: deque[Batcher] = deque()
        self._tasks: deque[Callable[[], None]] = deque()
        self._posted = threading.Event()
        target.attach(self)

    def forget_layouts(self):
        self.num_forgotten += 1

    def post(self, task):
        self._tasks.append(task)
        self._posted.set()

    def schedule(self, batcher):
        self._due.append(batcher)

    def defer(self, task):
        self._tasks.append(task)

    def work(self):
        """Do all that is to be done now."""
        while self._tasks or self._is_due():
            while self._tasks:
                self._tasks.popleft()()
            if self._is_due():
                self._due.popleft().turn(self.clock())

    def _is_due(self):
        if not self._due:
            return False
        first = self._due[0]
        return not (first.max_delay_s and first.delay_s(self.clock()))

    def submit(self, *values, is_stream=False, **options):
        """Submit a call, and begin possible runs; a refused one has no outcome."""
        request = FakeRequest(*values, **options)
        if is_stream:
            self.batcher.add(request.group)
        else:
            self.batcher.submit(request.group)
        self.work()
        return request

    def submit_all(self, requests):
        """Submit calls, and then begin possible runs."""
        for request in requests:
            self.batcher.submit(request.group)
        self.work()

    def wait(self, *requests):
        """Work until calls have their outcome."""
        until_s = time.monotonic() + TIMEOUT_S
        while any(request.outcome is None for request in requests):
            assert time.monotonic() < until_s, "no outcome"
            self._posted.wait(TIMEOUT_S)
            self._posted.clear()
            self.work()


class FakeClock:
    """A monotonic clock in seconds that moves only when a test moves it."""

    def __init__(self, now_s=0.0):
        self.now_s = now_s

    def __call__(self):
        return self.now_s

    def advance(self, seconds):
        self.now_s += seconds


class Terminal(io.StringIO):
    """What a program writes to a terminal."""

    def isatty(self):
        return True


def called_soon(monkeypatch, is_asked):
    """The list of the callbacks, of those that are asked for, that the running loop is given."""
    loop, found = asyncio.get_running_loop(), []
    call_soon = loop.call_soon

    def noted(callback, *args, **more):
        if is_asked(callback):
            found.append(callback)
        return call_soon(callback, *args, **more)

    monkeypatch.setattr(loop, "call_soon", noted)
    return found


_BUNDLED = PRETRAINED / "digits"
MANIFEST = repository.load_manifest(_BUNDLED / repository.versions(_BUNDLED)[0])
"""That of the bundled digits."""


def versions_of(model, name="digits"):
    """The state in which this version is the only one."""
    return ModelVersions(name, {model.version: model}, model.version)


def router_of(model, batching=None):
    """A router with one model, called digits."""
    router = Router(batching)
    router.change("digits", versions_of(model))
    return router


def model_in(classifier):
    """The loaded model of a classifier in this process, and its sizes and limits."""
    model = classifier._digits._model
    return model.served, model.batching


# Images that carry a number, so that a ledger on each side accounts for every one


_AT = slice(8, 16)
"""Where the ticket lies; the first pixel stays free: the fake engines answer it modulo ten."""


def image_with(ticket):
    """(1, 784) uint8 whose right answer is `ticket % 10`."""
    image = np.zeros((1, DIGITS.image_bytes), np.uint8)
    image[0, 0] = ticket % 10
    image[0, _AT] = np.frombuffer(ticket.to_bytes(8, "little"), np.uint8)
    return image


def tickets_of(images):
    """Return the number that each image carries."""
    numbers: list[int] = np.ascontiguousarray(images[:, _AT]).view("<u8")[:, 0].tolist()
    return numbers
