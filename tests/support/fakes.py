"""Stand-ins for a model, with gates instead of sleeps, and a clock that the test moves."""

import threading

import numpy as np

from serving.batching.request import Answer, Outcome, Request
from serving.config import Device
from serving.images import Images
from serving.model.engine import Engine
from serving.predictions import Probabilities
from serving.signature import DIGITS
from serving.tensors import Array, Feeds

TIMEOUT_S = 10.0
"""How long a test waits for what must happen; only a failure takes that long."""


def images_of(*values: int) -> Images:
    """(N, 784) uint8, each image filled with one value: the fakes answer `value % 10`."""
    return np.repeat(np.array(values, np.uint8)[:, None], DIGITS.image_bytes, axis=1)


def probabilities_of(images: Images) -> Probabilities:
    """What the fakes answer: 0.91 for the image's first pixel modulo 10, 0.01 for the others."""
    probabilities = np.full((len(images), DIGITS.num_classes), 0.01, np.float32)
    probabilities[np.arange(len(images)), images[:, 0] % DIGITS.num_classes] = 0.91
    return probabilities


def classified(engine: Engine, images: Images) -> Probabilities:
    """The answer of the engine of a classifier."""
    (probabilities,) = engine.run({"images": images})
    return probabilities


class FakeModel:
    """Answers at once, remembers what it ran, and fails on the values in `poison`."""

    signature = DIGITS
    tensors = DIGITS.tensors
    device: Device = "cpu"
    max_concurrent_runs: int | None = None

    def __init__(self, version: str = "1", poison: frozenset[int] = frozenset()) -> None:
        self.version = version
        self.poison = poison
        self.ran: list[list[int]] = []
        """The first pixel of every image, run by run."""

    def run(self, feeds: Feeds) -> list[Array]:
        """As an engine."""
        return [self.classify(feeds["images"])]

    def classify(self, images: Images) -> Probabilities:
        """As a loaded model."""
        values = images[:, 0].tolist()
        self.ran.append(values)
        if self.poison.intersection(values):
            raise RuntimeError("poisoned")
        return probabilities_of(images)


class GatedModel(FakeModel):
    """Each run announces itself and waits until the test opens the gate for it."""

    def __init__(self, version: str = "1", poison: frozenset[int] = frozenset()) -> None:
        super().__init__(version, poison)
        self._started = threading.Semaphore(0)
        self._gate = threading.Semaphore(0)

    def classify(self, images: Images) -> Probabilities:
        self._started.release()
        assert self._gate.acquire(timeout=TIMEOUT_S)
        return super().classify(images)

    def wait_until_running(self) -> None:
        assert self._started.acquire(timeout=TIMEOUT_S), "no run began"

    def open(self, num_runs: int = 1) -> None:
        self._gate.release(num_runs)


class RecordingRequest(Request):
    """Queued with `record`, keeps its outcome, and refuses a second one."""

    __slots__ = ("_done", "outcome", "values")

    def __init__(self, images: Images, **options: object) -> None:
        super().__init__(images.tobytes(), len(images), **options)  # type: ignore[arg-type]
        self.values: list[int] = images[:, 0].tolist()
        self.outcome: Outcome | None = None
        self._done = threading.Event()

    def record(self, outcome: Outcome) -> None:
        assert self.outcome is None, "a second outcome"
        self.outcome = outcome
        self._done.set()

    def wait(self) -> "RecordingRequest":
        assert self._done.wait(TIMEOUT_S), "no outcome"
        return self

    @property
    def digits(self) -> list[int]:
        assert isinstance(self.outcome, Answer), self.outcome
        return list(self.outcome.digits)


class FakeClock:
    """A monotonic clock in seconds that moves only when a test moves it."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s

    def advance(self, seconds: float) -> None:
        self.now_s += seconds
