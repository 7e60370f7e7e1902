"""Calls that wait for a run: with their caller and the encoder of their answer, in turns."""

from collections import deque
from collections.abc import Callable, Container, Sequence
from typing import Any, Protocol

import numpy.typing as npt

from serving.errors import DigitsError
from serving.predictions import ClassNumbers, class_numbers
from serving.signature import Signature
from serving.telemetry.tracing import Ran
from serving.tensors import Layout

TURN_ROWS = 16
"""Rows that one caller adds to a batch before the others' turn."""
_SHARE_OF_PATIENCE = 0.25
"""How much of its time a call may wait for the runs before its own: under overload reading and
refusing take as long again, and so do the network and the kernel."""
_OWN_ROWS = 8
"""Rows that a caller, or else an address, may have waiting however many others have."""
_GIVE_UP_MEMORY_S = 1.0
"""How long it is remembered that a caller gave up."""


class Result:
    """The outputs of one run, for all calls that it answers."""

    __slots__ = ("classes", "finished_s", "num_rows", "outputs", "rows", "signature", "started_s",
                 "version")  # fmt: skip

    def __init__(
        self, outputs: Sequence[npt.NDArray[Any]], num_rows: int, version: str,
        signature: Signature | None, started_s: float, finished_s: float,
    ) -> None:  # fmt: skip
        """Describe a run."""
        self.outputs = outputs
        self.num_rows = num_rows
        self.version = version
        self.signature = signature
        self.started_s = started_s
        self.finished_s = finished_s
        self.rows = b""
        """Of a classifier the bytes of the probabilities: little-endian float32, row after row."""
        self.classes: ClassNumbers | None = None
        """Of a classifier the most probable class of each row."""
        if signature is not None:
            self.rows, self.classes = outputs[0].tobytes(), class_numbers(outputs[0])

    def part(self, at: int, num_rows: int) -> Sequence[npt.NDArray[Any]]:
        """Return the outputs for some rows; all of them for a call that ran alone."""
        if num_rows == self.num_rows:
            return self.outputs
        return [output[at : at + num_rows] for output in self.outputs]


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
    def lines(self) -> dict[Any, Any]:
        """Its waiting calls in each queue."""


class Target(Protocol):
    """The receiver of calls: a model, or one version of it."""

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

    def fail(self, group: "Group", error: DigitsError) -> None:
        """Take the reason why there are none."""


class Group:
    """Calls of one caller that came together, or messages of one stream, with one encoder."""

    __slots__ = ("arrived_s", "caller", "deadline_s", "encoder", "messages", "num_rows", "sink",
                 "slots", "streams")  # fmt: skip

    def __init__(
        self, caller: Caller, streams: Sequence[bytes], messages: Sequence[Any],
        encoder: ResponseEncoder, sink: Sink, arrived_s: float, deadline_s: float,
        slots: Sequence[Any] | None = None,
    ) -> None:  # fmt: skip
        """Describe calls that wait.

        Args:
            caller: who sent them.
            streams: the calls.
            messages: the rows of each: bytes of an input or of a layout, or arrays of all inputs.
            encoder: how each is answered.
            sink: takes the outcome.
            arrived_s: when they came, in monotonic seconds.
            deadline_s: when they are late.
            slots: the sink's names for them, if not their streams.
        """
        self.caller = caller
        self.streams = streams
        self.messages = messages
        self.encoder = encoder
        self.sink = sink
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.slots = slots
        self.num_rows = len(streams) * encoder.num_rows
        """The rows of all of them."""

    def cut(self, begin: int, end: int) -> "Group":
        """Return some of the calls."""
        return Group(
            self.caller, self.streams[begin:end], self.messages[begin:end], self.encoder, self.sink,
            self.arrived_s, self.deadline_s, self.slots and self.slots[begin:end],
        )  # fmt: skip

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

    def _pick(self, at: list[int]) -> "Group":
        slots = self.slots
        return Group(
            self.caller, [self.streams[i] for i in at], [self.messages[i] for i in at],
            self.encoder, self.sink, self.arrived_s, self.deadline_s,
            slots and [slots[i] for i in at],
        )  # fmt: skip


def open_parts(groups: Sequence[Group]) -> list[Group]:
    """Return the calls whose callers have not left."""
    parts = (group.open_part() for group in groups)
    return [part for part in parts if part is not None]


class Line:
    """The waiting calls of one caller."""

    __slots__ = ("caller", "groups", "num_rows")

    def __init__(self, caller: Caller) -> None:
        """Start empty."""
        self.caller = caller
        self.groups: deque[Group] = deque()
        self.num_rows = 0

    def take(self, number: int, *, newest: bool) -> Group:
        """Take up to a number of calls of the oldest group, or of the newest."""
        group = self.groups.pop() if newest else self.groups.popleft()
        size = len(group.streams)
        if size > number:
            at = size - number if newest else number
            older, newer = group.cut(0, at), group.cut(at, size)
            if newest:
                self.groups.append(older)
                group = newer
            else:
                self.groups.appendleft(newer)
                group = older
        self.num_rows -= group.num_rows
        return group

    def drop_cancelled(self) -> None:
        """Drop the oldest calls, as far as their callers have left."""
        while self.groups:
            group, number = self.groups[0], 0
            while number < len(group.streams) and group.streams[number] not in group.caller.streams:
                number += 1
            if not number:
                break
            self.take(number, newest=False)


class Queue:
    """Calls that were read and have not run; used by one thread only."""

    def __init__(self, capacity: int) -> None:
        """Start empty; `capacity` counts rows."""
        self.num_rows = 0
        self.oldest_s = 0.0
        """When the first call arrived in the empty queue, in monotonic seconds."""
        self.capacity = capacity
        self.run_rows = 1
        """The most rows of a run."""
        self.row_s = 0.0
        """Seconds for a row in full runs, with the reading before: a moving average."""
        self._ring: deque[Line] = deque()
        """Those with calls that wait, the next one's turn first."""
        self._addresses: dict[str, int] = {}
        """Rows that wait, by where their callers are."""

    def room(self, caller: Caller, timeout_s: float) -> float:
        """Return how many more rows of calls with this timeout may wait.

        Calls that fit in the next run are never refused, however long the last runs took. Nor is a
        caller with few calls for those of others: half as much again is reserved for callers with
        few calls, and as much for addresses with few.
        """
        most: float = self.capacity
        if self.row_s:
            patience = timeout_s * _SHARE_OF_PATIENCE / self.row_s
            most = min(most, max(self.run_rows, patience))
        room = most - self.num_rows
        if room < _OWN_ROWS:
            if room < -most / 2:
                own = self._addresses.get(caller.address, 0)
            else:
                line = caller.lines.get(self)
                own = line.num_rows if line else 0
            room = max(room, min(_OWN_ROWS - own, room + most))
        return room

    def note_run(self, num_rows: int, seconds: float) -> None:
        """Learn the time of a row from a run of more than half of `run_rows`; fewer take longer."""
        self.row_s += (seconds / num_rows - self.row_s) / 8

    @property
    def room_for_streams(self) -> int:
        """How many rows streams may add: half is left for unary calls, which can't be stalled."""
        return max(self.capacity // 2 - self.num_rows, not self.num_rows)

    def put(self, group: Group) -> None:
        """Add calls."""
        caller = group.caller
        line = caller.lines.get(self)
        if line is None:
            line = caller.lines[self] = Line(caller)
        if not line.groups:
            if not self._ring:
                self.oldest_s = group.arrived_s
            self._ring.append(line)
        num_rows, address = group.num_rows, caller.address
        line.groups.append(group)
        line.num_rows += num_rows
        self._addresses[address] = self._addresses.get(address, 0) + num_rows
        self.num_rows += num_rows

    def streams_of(self, caller: Caller) -> set[bytes]:
        """Return the calls of a caller that wait."""
        line = caller.lines.get(self)
        return {stream for group in line.groups for stream in group.streams} if line else set()

    def take(self, max_rows: int, now_s: float) -> tuple[list[Group], list[Group]]:
        """Take up to `max_rows` rows, or one call that is larger.

        The newest of a caller that gives up go first, for its deadlines are not known: the oldest
        are about to be cancelled, so first come, first served would answer nothing in time.

        Returns:
            The calls to run, and those whose deadline has passed. Cancelled ones are in neither.
        """
        taken: list[Group] = []
        if self.num_rows <= max_rows:
            for line in self._ring:
                for group in line.groups:  # not open_parts: this is the way of most calls
                    if (found := group.open_part()) is not None:
                        taken.append(found)  # noqa: PERF401
                line.groups.clear()
                line.num_rows = 0
            self._ring.clear()
            self._addresses.clear()
            self.num_rows = 0
        else:
            room = max_rows
            while self._ring and room > 0:
                room -= self._take_turn(taken, room, now_s)
        for group in taken:
            if group.deadline_s <= now_s:
                break
        else:
            return taken, []
        late = [group for group in taken if group.deadline_s <= now_s]
        return [group for group in taken if group.deadline_s > now_s], late

    def _take_turn(self, taken: list[Group], room: int, now_s: float) -> int:
        """Take the next caller's share of a batch: a few rows, or one call of any size.

        Returns:
            The rows taken; `room` if the next call is for another batch.
        """
        line = self._ring.popleft()
        before = line.num_rows
        newest_first = now_s - line.caller.gave_up_s < _GIVE_UP_MEMORY_S
        if newest_first:  # else the cancelled ones at the other end would count as waiting
            line.drop_cancelled()
        turn = min(TURN_ROWS, room) if self._ring else room
        num_rows = 0
        while line.groups:
            rows = line.groups[-1 if newest_first else 0].encoder.num_rows
            number = max(0, turn - num_rows) // rows
            if not number and num_rows:
                self._ring.append(line)
                break
            if not number and taken and rows > room:
                self._ring.appendleft(line)
                num_rows = room
                break
            if (found := line.take(max(1, number), newest=newest_first).open_part()) is not None:
                taken.append(found)
                num_rows += found.num_rows
        self._note_taken(line, before - line.num_rows)
        return num_rows

    def _note_taken(self, line: Line, num_rows: int) -> None:
        self.num_rows -= num_rows
        if self.num_rows:
            self._addresses[line.caller.address] -= num_rows
        else:
            self._addresses.clear()

    def forget(self, caller: Caller) -> None:
        """Drop the calls of a closed connection."""
        line = caller.lines.pop(self, None)
        if line is not None and line.groups:
            self._ring.remove(line)
            self._note_taken(line, line.num_rows)

    def sweep(self, now_s: float) -> list[Group]:
        """Drop the calls whose callers have left, and take those whose deadline has passed."""
        late: list[Group] = []
        for line in list(self._ring):
            before, kept = line.num_rows, deque[Group]()
            for group in line.groups:
                (late if group.deadline_s <= now_s else kept).extend(open_parts([group]))
            line.groups = kept
            line.num_rows = sum(group.num_rows for group in kept)
            if not kept:
                self._ring.remove(line)
            self._note_taken(line, before - line.num_rows)
        return late
