"""The queue of calls that wait for a run; callers take turns."""

from collections import deque

from serving.batching.group import Caller, Group, open_parts

TURN_ROWS = 16
"""Rows that one caller adds to a batch before the others' turn."""
_SHARE_OF_PATIENCE = 0.25
"""How much of its time a call may wait for the runs before its own: under overload reading and
refusing take as long again, and so do the network and the kernel."""
_OWN_ROWS = 8
"""Rows that a caller, or else an address, may have waiting however many others have."""
_GIVE_UP_MEMORY_S = 1.0
"""How long it is remembered that a caller gave up."""


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
