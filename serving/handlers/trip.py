"""Calls that go through a handler's phases together, and the process that works on them."""

import itertools
import math
from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Any

from serving.batching.run import Group
from serving.errors import ServingError
from serving.handlers.process_set import Process
from serving.tensors import Array


class TripPhase(Enum):
    """How far a trip is."""

    DECODING = auto()
    READY = auto()
    """It waits for a process."""
    WORKING = auto()
    """A process works on `Trip.step`."""
    RUNNING = auto()
    """The model runs."""
    ENDED = auto()


class Attempt(Enum):
    """Why calls go through the phases."""

    FIRST = auto()
    AGAIN = auto()
    """The process that had their state has ended on others."""
    ALONE = auto()
    """A process has ended on this call and others."""


class Trip:
    """Calls that go through the phases together; the `Caller` of the model's run for them."""

    __slots__ = (
        "arrays", "attempt", "calls", "depth", "num_rows", "number", "options", "phase", "places",
        "process", "queues", "started_s", "step", "times",
    )  # fmt: skip

    address = ""
    gave_up_s = -math.inf

    def __init__(
        self,
        number: int,
        calls: list[Group],
        arrays: Sequence[Array],
        options: dict[str, Any],
        attempt: Attempt,
    ) -> None:
        self.number = number
        self.attempt = attempt
        self.calls = calls
        """Calls that nobody has given up."""
        self.arrays: Sequence[Array] = arrays
        """What the next step gets."""
        self.options = options
        rows = [group.num_rows for group in calls]
        starts = itertools.accumulate(rows, initial=0)
        self.places = {id(group): start for group, start in zip(calls, starts, strict=False)}
        """The first row of each call."""
        self.num_rows = sum(rows)
        self.depth = max(getattr(group.encoder, "depth", 0) for group in calls)
        self.phase = TripPhase.READY
        self.step = ""
        """The method that is next, or works."""
        self.process: Slot | None = None
        """The one that has its state, or works."""
        self.queues: dict[Any, Any] = {}
        self.started_s = 0.0
        """When its first step began."""
        self.times: list[tuple[str, float, float]] = []
        """Each step's name, start and end."""

    @property
    def streams(self) -> "Trip":
        """Its calls, as a `Caller` has them: there is one, as long as somebody waits."""
        return self

    def metadata(self, stream: object) -> Mapping[str, str]:
        """Return no metadata: the model between the steps gets none."""
        return {}

    def __contains__(self, stream: object) -> bool:
        return any(group.open_calls() is not None for group in self.calls)

    @property
    def num_calls(self) -> int:
        """How many calls have begun together."""
        return len(self.places)

    @property
    def deadline_s(self) -> float:
        """When the last of its calls is late."""
        return max((group.deadline_s for group in self.calls), default=-math.inf)


class Slot:
    """A process, and what it does."""

    __slots__ = ("asked", "begun_s", "own", "process", "trip")

    def __init__(self, process: Process) -> None:
        self.process = process
        self.trip: Trip | None = None
        """What it works on."""
        self.begun_s = math.inf
        """Since when."""
        self.own: deque[Trip] = deque()
        """Trips that are ready and whose state it has."""
        self.asked: dict[int, Any] = {}
        """Its calls of other models, by their numbers, until they are answered."""

    @property
    def has_suspect(self) -> bool:
        """Whether it works on a call that may have ended another process."""
        return self.trip is not None and self.trip.attempt is Attempt.ALONE

    def refuse_asked(self, error: ServingError) -> None:
        """Answer what the process has asked of other models with an error."""
        for each in [*self.asked.values()]:
            each.fail(None, error)
