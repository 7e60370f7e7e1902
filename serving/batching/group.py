"""Calls that are answered together: their caller, their model, and who takes the outcome."""

from collections.abc import Callable, Container, Iterable, Sequence
from typing import Any, Protocol

from serving.batching.result import Ran, Result
from serving.errors import ServingError
from serving.tensors import Layout


class Owner(Protocol):
    """The thread that reads from callers and answers them."""

    def clock(self) -> float:
        """Return monotonic seconds."""

    def post(self, task: Callable[[], None]) -> None:
        """Run a function on the owner's thread, from any thread."""

    def schedule(self, batcher: Any) -> None:
        """Have `batcher.turn` called soon."""

    def defer(self, task: Callable[[], None]) -> None:
        """Run a function soon, when the answers are on their way."""

    def forget_layouts(self) -> None:
        """Have all messages parsed again."""


class Caller(Protocol):
    """Who sends calls: a connection. Callers take turns."""

    @property
    def address(self) -> str:
        """Where it is, without its port."""

    @property
    def streams(self) -> Container[bytes]:
        """Its calls; one that has left, or was answered, is not in it."""

    @property
    def gave_up_s(self) -> float:
        """When it last cancelled a call, in monotonic seconds."""

    @property
    def queues(self) -> dict[Any, Any]:
        """Its waiting calls in each queue."""


class Target(Protocol):
    """The receiver of calls: a model, or one version of it."""

    @property
    def label(self) -> tuple[str, str]:
        """The name and the version, as metrics have them."""

    def submit(self, group: "Group") -> int:
        """See `Batcher.submit`."""

    def add(self, group: "Group") -> None:
        """See `Batcher.add`."""

    def room_for_stream(self, num_rows: int) -> int:
        """See `Batcher.room_for_stream`."""


class ResponseEncoder:
    """The common part of calls of one layout, and the encoder of their answers."""

    layout: Layout | None = None
    """Where the inputs lie in the calls' messages, if these are bytes of several tensors."""

    def __init__(
        self, target: Target, method: str | None, num_rows: int, timeout_s: float | None = None
    ) -> None:
        """Describe calls.

        Args:
            target: runs them.
            method: the name in the metrics; None if they are counted elsewhere.
            num_rows: the rows of each.
            timeout_s: the requests' own timeout; None if only the deadline of the call counts.
        """
        self.target = target
        self.method = method
        self.num_rows = num_rows
        self.timeout_s = timeout_s

    def encode(self, result: Result, at: int, number: int) -> Sequence[Any]:
        """Make the answers to calls of a run that succeeded, the first of row `at`."""
        raise NotImplementedError


class Sink(Protocol):
    """The receiver of the outcome of calls, on the owner's thread."""

    def answer(self, group: "Group", responses: Sequence[Any], run: Ran) -> None:
        """Take the responses, one for each call, and the run that they are from."""

    def fail(self, group: "Group", error: ServingError) -> None:
        """Take the reason why there are none."""


class Group:
    """Calls of one caller that came together, or messages of one stream, with one encoder."""

    __slots__ = ("arrived_s", "caller", "deadline_s", "deadlines_s", "encoder", "messages",
                 "num_rows", "sink", "slots", "streams")  # fmt: skip

    def __init__(
        self,
        caller: Caller,
        streams: Sequence[bytes],
        messages: Sequence[Any],
        encoder: ResponseEncoder,
        sink: Sink,
        arrived_s: float,
        deadline_s: float,
        slots: Sequence[Any] | None = None,
        deadlines_s: Sequence[float] | None = None,
    ) -> None:
        """Describe calls that wait.

        Args:
            caller: who sent them.
            streams: the calls.
            messages: the rows of each: bytes of an input or of a layout, or arrays of all inputs.
            encoder: how each is answered.
            sink: takes the outcome.
            arrived_s: when they came, in monotonic seconds.
            deadline_s: when the first of them is late.
            slots: the sink's names for them, if not their streams.
            deadlines_s: when each is late, if not all at once.
        """
        self.caller = caller
        self.streams = streams
        self.messages = messages
        self.encoder = encoder
        self.sink = sink
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.slots = slots
        self.deadlines_s = deadlines_s
        self.num_rows = len(streams) * encoder.num_rows
        """The rows of all of them."""

    def cut(self, begin: int, end: int) -> "Group":
        """Return some of the calls."""
        return self._pick(range(begin, end))

    def open_part(self) -> "Group | None":
        """Return the calls whose callers have not left; None if all have."""
        streams = self.caller.streams
        if all(map(streams.__contains__, self.streams)):
            return self
        at = [i for i, stream in enumerate(self.streams) if stream in streams]
        return self._pick(at) if at else None

    def open_answers(self, responses: Sequence[Any]) -> "tuple[Group, Sequence[Any]]":
        """Return the calls whose callers have not left, perhaps none, and their responses."""
        streams = self.caller.streams
        at = [i for i, stream in enumerate(self.streams) if stream in streams]
        if len(at) == len(self.streams):
            return self, responses
        return self._pick(at), [responses[i] for i in at]

    def _pick(self, at: Sequence[int]) -> "Group":
        slots = self.slots and [self.slots[i] for i in at]
        deadline_s, deadlines_s = self.deadline_s, self.deadlines_s
        if deadlines_s is not None:
            deadlines_s = [deadlines_s[i] for i in at]
            deadline_s = min(deadlines_s, default=deadline_s)
        streams, messages = [self.streams[i] for i in at], [self.messages[i] for i in at]
        times = self.arrived_s, deadline_s
        return Group(
            self.caller, streams, messages, self.encoder, self.sink, *times, slots, deadlines_s
        )

    def divide(self, now_s: float) -> "tuple[Group | None, Group | None]":
        """Return the calls that are in time, and those that are late."""
        if now_s < self.deadline_s:
            return self, None
        if self.deadlines_s is None:
            return None, self
        numbers = range(len(self.streams))
        in_time = [i for i in numbers if now_s < self.deadlines_s[i]]
        late = [i for i in numbers if self.deadlines_s[i] <= now_s]
        return self._pick(in_time) if in_time else None, self._pick(late) if late else None


def open_parts(groups: Sequence[Group]) -> list[Group]:
    """Return the calls whose callers have not left."""
    parts = (group.open_part() for group in groups)
    return [part for part in parts if part is not None]


def divide(groups: Iterable[Group], now_s: float) -> tuple[list[Group], list[Group]]:
    """Return the calls that are in time, and those that are late."""
    parts = [group.divide(now_s) for group in groups]
    return [part for part, _ in parts if part], [part for _, part in parts if part]
