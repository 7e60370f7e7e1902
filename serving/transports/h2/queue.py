"""The queue of calls that wait for a run; connections take turns."""

from collections import Counter, deque
from collections.abc import Sequence
from typing import Any

from serving.protocols.plan import Plan

_TURN_ROWS = 16
"""Images that one connection adds to a batch before the others' turn."""
_SHARE_OF_PATIENCE = 0.25
"""How much of its time a call may wait for the runs before its own: under overload reading and
refusing take as long again, and so do the network and the kernel."""
_OWN_ROWS = 8
"""Images that a connection, or else an address, may have waiting however many others have."""
_GIVE_UP_MEMORY_S = 1.0
"""How long callers that gave up are remembered."""


class Line:
    """What one connection has waiting."""

    __slots__ = ("address", "groups", "num_rows")

    def __init__(self, address: str) -> None:
        """Start empty; `address` is where the caller is, without its port."""
        self.address = address
        self.groups: deque[Group] = deque()
        self.num_rows = 0

    def streams(self) -> set[bytes]:
        """Return the calls that wait."""
        return {stream for group in self.groups for stream in group.streams}

    def take(self, number: int, *, newest: bool) -> "Group":
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
        self.num_rows -= len(group.streams) * group.plan.num_rows
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


class Group:
    """Calls of one connection that came together, or messages of one stream, with one plan."""

    __slots__ = ("arrived_s", "caller", "deadline_s", "messages", "plan", "slots", "streams")

    def __init__(
        self, caller: Any, streams: Sequence[bytes], messages: Sequence[bytes | memoryview],
        plan: Plan, arrived_s: float, deadline_s: float, slots: Sequence[Any] | None = None,
    ) -> None:  # fmt: skip
        """Describe calls that wait.

        Args:
            caller: the connection: its peer has left what is not in its `streams`; what waits is
                in its `line`.
            streams: the calls.
            messages: the bytes of each one's images.
            plan: how each is answered.
            arrived_s: when they came, in monotonic seconds.
            deadline_s: when they are late.
            slots: the places of the answers in their stream; None for unary calls.
        """
        self.caller = caller
        self.streams = streams
        self.messages = messages
        self.plan = plan
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.slots = slots

    def cut(self, begin: int, end: int) -> "Group":
        """Return some of the calls."""
        return Group(
            self.caller, self.streams[begin:end], self.messages[begin:end], self.plan,
            self.arrived_s, self.deadline_s, self.slots and self.slots[begin:end],
        )  # fmt: skip

    def put_open(self, groups: "list[Group]") -> None:
        """Add the calls to a list, but those whose callers have left."""
        is_open = self.caller.streams.__contains__
        if all(map(is_open, self.streams)):
            groups.append(self)
        else:
            numbers = range(len(self.streams))
            groups += [self.cut(i, i + 1) for i in numbers if is_open(self.streams[i])]


class Queue:
    """Calls that were read and have not run; used by the loop's thread only."""

    def __init__(self, capacity: int) -> None:
        """Start empty; `capacity` counts images."""
        self.num_rows = 0
        self.oldest_s = 0.0
        """When the first call arrived in the empty queue, in monotonic seconds."""
        self.capacity = capacity
        self.run_rows = 1
        """The most images of a run."""
        self.row_s = 0.0
        """Seconds for an image in full runs, with the reading before: a moving average."""
        self._ring: deque[Line] = deque()
        """Those with calls that wait, the next one's turn first."""
        self._addresses: Counter[str] = Counter()
        """Images that wait, by where their callers are."""
        self._gave_up_s = -_GIVE_UP_MEMORY_S

    def room(self, line: Line, timeout_s: float) -> float:
        """Return how many more images of calls with this timeout may wait.

        What fits in the next run is never refused, however long the last runs took. Nor is a caller
        with few calls for those of others: half as much again is kept for connections with few
        calls, and as much for addresses with few.
        """
        most: float = self.capacity
        if self.row_s:
            patience = timeout_s * _SHARE_OF_PATIENCE / self.row_s
            most = min(most, max(self.run_rows, patience))
        room = most - self.num_rows
        if room < _OWN_ROWS:
            own = self._addresses[line.address] if room < -most / 2 else line.num_rows
            room = max(room, min(_OWN_ROWS - own, room + most))
        return room

    @property
    def has_room_for_streams(self) -> bool:
        """Whether streams may add to it: half is left for unary calls, which can't be stalled."""
        return self.num_rows < self.capacity // 2 or not self.num_rows

    def put(self, group: Group) -> None:
        """Add calls."""
        line: Line = group.caller.line
        if not line.groups:
            if not self._ring:
                self.oldest_s = group.arrived_s
            self._ring.append(line)
        num_rows = len(group.streams) * group.plan.num_rows
        line.groups.append(group)
        line.num_rows += num_rows
        self._addresses[line.address] += num_rows
        self.num_rows += num_rows

    def note_cancelled(self, now_s: float) -> None:
        """Record that a caller gave up."""
        self._gave_up_s = max(self._gave_up_s, now_s)

    def take(self, max_rows: int, now_s: float) -> tuple[list[Group], list[Group]]:
        """Take up to `max_rows` images, or one call that is larger.

        The newest go first while callers give up, for their deadlines are not known: the oldest are
        about to be cancelled, so first come, first served would answer nobody in time.

        Returns:
            The calls to run, and those whose deadline has passed. Cancelled ones are in neither.
        """
        taken: list[Group] = []
        if self.num_rows <= max_rows:
            for line in self._ring:
                for group in line.groups:
                    group.put_open(taken)
                line.groups.clear()
                line.num_rows = 0
            self._ring.clear()
            self._addresses.clear()
            self.num_rows = 0
        else:
            newest_first = now_s - self._gave_up_s < _GIVE_UP_MEMORY_S
            room = max_rows
            while self._ring and room > 0:
                room -= self._take_turn(taken, room, newest_first=newest_first)
        late = [group for group in taken if group.deadline_s <= now_s]
        return ([group for group in taken if group.deadline_s > now_s] if late else taken), late

    def _take_turn(self, taken: list[Group], room: int, *, newest_first: bool) -> int:
        """Take the next connection's share of a batch: a few images, or one call of any size.

        Returns:
            The images taken; `room` if the next call is for another batch.
        """
        line = self._ring.popleft()
        before = line.num_rows
        if newest_first:  # else the cancelled ones at the other end would count as waiting
            line.drop_cancelled()
        turn = min(_TURN_ROWS, room) if self._ring else room
        num_rows = 0
        while line.groups:
            rows = line.groups[-1 if newest_first else 0].plan.num_rows
            number = max(0, turn - num_rows) // rows
            if not number and num_rows:
                self._ring.append(line)
                break
            if not number and taken and rows > room:
                self._ring.appendleft(line)
                num_rows = room
                break
            found: list[Group] = []
            line.take(max(1, number), newest=newest_first).put_open(found)
            taken += found
            num_rows += rows * sum(len(group.streams) for group in found)
        self._note_taken(line, before - line.num_rows)
        return num_rows

    def _note_taken(self, line: Line, num_rows: int) -> None:
        self.num_rows -= num_rows
        self._addresses[line.address] -= num_rows

    def forget(self, line: Line) -> None:
        """Drop the calls of a closed connection."""
        if line.groups:
            self._note_taken(line, line.num_rows)
            line.groups.clear()
            line.num_rows = 0
            self._ring.remove(line)
