"""Calls that were read and have not run: whose turn it is, and how many more may wait."""

from collections import deque
from collections.abc import Callable

from serving.batching.run import Caller, Group, divide, open_calls

TURN_ROWS = 16
"""Rows that one caller adds to a batch before the others' turn."""
_SHARE_OF_BUDGET = 0.25
"""How much of its time a call may wait for the runs before its own: under overload reading and
refusing take as long again, and so do the network and the kernel."""
_LONG_WAIT_S, _LONG_WAIT_RUNS = 2.5, 10
"""How long a call may wait, or how many runs if they take longer, for whom others wait already: a
quarter of ten seconds, as long as most clients give a call. Callers that send more than can run
would only be answered later, and not more of them; a program that has 64 calls in flight, and sends
the next after an answer, is none of these."""
_OWN_ROWS = 8
"""Rows that a caller, or else an address, may have waiting however many others have."""
_GIVE_UP_MEMORY_S = 1.0
"""How long it is remembered that a caller gave up."""


class ClientQueue:
    """The waiting calls of one caller."""

    __slots__ = ("caller", "groups", "num_rows")

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.groups: deque[Group] = deque()
        self.num_rows = 0

    def take_oldest(self, number: int) -> Group:
        """Take up to a number of calls of the oldest group."""
        group = self.groups.popleft()
        if len(group.streams) > number:
            self.groups.appendleft(group.cut(number, len(group.streams)))
            group = group.cut(0, number)
        self.num_rows -= group.num_rows
        return group

    def take_newest(self, number: int) -> Group:
        """Take up to a number of calls of the newest group, the newest ones."""
        group = self.groups.pop()
        at = len(group.streams) - number
        if at > 0:
            self.groups.append(group.cut(0, at))
            group = group.cut(at, len(group.streams))
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
            self.take_oldest(number)


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
        """Seconds for a row in full runs, with the reading before: a moving average; 0 before."""
        self.away_s = 0.0
        """Seconds for which nothing runs for a reason that passes, such as the start of a process;
        calls wait that much longer before their callers are too many."""
        self._ring: deque[ClientQueue] = deque()
        """Callers with calls that wait, the next one's turn first."""
        self._addresses: dict[str, int] = {}
        """Rows that wait, by where their callers are."""

    def room(self, caller: Caller, left_s: float) -> float:
        """Return how many more rows of calls that have so much time left may wait.

        There are three tiers, each by rows that wait already, of the most that may:

            up to all of them       anybody's calls
            then half as many       of callers that have fewer than 8 rows waiting
            then the rest           of addresses that have fewer than 8 rows waiting, up to twice
                                    as many as in the first tier

        Calls that fit in the next run are never refused, however long the last runs took. A caller
        that sends its next call after the answer to the last does not wait long for its own calls;
        one that has many waiting would.
        """
        most = self._most_rows(caller, left_s)
        room = most - self.num_rows
        if room >= -most / 2:
            reserved = _OWN_ROWS - self._num_waiting(caller)
        else:
            reserved = _OWN_ROWS - self._addresses.get(caller.address, 0)
        return max(room, min(reserved, room + most))

    def offer(self, group: Group, clock: Callable[[], float], slo_s: float) -> int:
        """Add the calls of a group that may wait; return how many, the first ones.

        Args:
            group: the calls, of which the last deadline counts: each ends at its own.
            clock: returns monotonic seconds.
            slo_s: seconds in which calls are answered, if the server has such an aim.
        """
        number = len(group.streams)
        if self.num_rows + group.num_rows > self.run_rows:
            fitting = self._num_fitting(group, clock(), slo_s)
            if not fitting:
                return 0
            if fitting < number:
                number, group = fitting, group.cut(0, fitting)
        self.put(group)
        return number

    def _num_fitting(self, group: Group, now_s: float, slo_s: float) -> int:
        """Return how many calls of a group may wait; see `offer`."""
        last_s = max(group.deadlines_s or (group.deadline_s,))
        room = self.room(group.caller, min(last_s, group.arrived_s + slo_s) - now_s)
        # However slow the model is: a call may always be the only one.
        return max(int(not self.num_rows), int(min(room, group.num_rows) // group.encoder.num_rows))

    def _most_rows(self, caller: Caller, left_s: float) -> float:
        """Return how many rows may wait in the first tier, which all callers share."""
        if not self.row_s:
            return self.capacity
        wait_s = left_s * _SHARE_OF_BUDGET
        if self._num_waiting(caller):
            runs_s = _LONG_WAIT_RUNS * self.run_rows * self.row_s
            wait_s = min(wait_s, self.away_s + max(_LONG_WAIT_S, runs_s))
        return min(self.capacity, max(self.run_rows, wait_s / self.row_s))

    def _num_waiting(self, caller: Caller) -> int:
        """Return how many rows of a caller wait."""
        waiting = caller.queues.get(self)
        return waiting.num_rows if waiting else 0

    def note_run(self, num_rows: int, seconds: float) -> None:
        """Learn the time of a row from a run of more than half of `run_rows`; fewer take longer."""
        self.row_s += (seconds / num_rows - self.row_s) / (8 if self.row_s else 1)

    @property
    def room_for_streams(self) -> int:
        """How many rows streams may add: half is left for unary calls, which can't be stalled."""
        return max(self.capacity // 2 - self.num_rows, not self.num_rows)

    def put(self, group: Group) -> None:
        """Add calls."""
        caller = group.caller
        waiting = caller.queues.get(self)
        if waiting is None:
            waiting = caller.queues[self] = ClientQueue(caller)
        if not waiting.groups:
            if not self._ring:
                self.oldest_s = group.arrived_s
            self._ring.append(waiting)
        num_rows, address = group.num_rows, caller.address
        waiting.groups.append(group)
        waiting.num_rows += num_rows
        self._addresses[address] = self._addresses.get(address, 0) + num_rows
        self.num_rows += num_rows

    def streams_of(self, caller: Caller) -> set[bytes]:
        """Return the calls of a caller that wait."""
        waiting = caller.queues.get(self)
        return (
            {stream for group in waiting.groups for stream in group.streams} if waiting else set()
        )

    def take(self, max_rows: int, now_s: float) -> tuple[list[Group], list[Group]]:
        """Take up to `max_rows` rows, or one call that is larger.

        The newest of a caller that gives up go first, for its deadlines are not known: the oldest
        are about to be cancelled, so first come, first served would answer nothing in time.

        Returns:
            The calls to run, and those whose deadline has passed. Cancelled ones are in neither.
        """
        taken: list[Group] = []
        if self.num_rows <= max_rows:
            for waiting in self._ring:
                for group in waiting.groups:  # not open_calls: this is the way of most calls
                    if (found := group.open_calls()) is not None:
                        taken.append(found)  # noqa: PERF401
                waiting.groups.clear()
                waiting.num_rows = 0
            self._ring.clear()
            self._addresses.clear()
            self.num_rows = 0
        else:
            room = max_rows
            while self._ring and room > 0:
                room = self._take_turn(taken, room, now_s)
        for group in taken:
            if group.deadline_s <= now_s:
                return divide(taken, now_s)
        return taken, []

    def _take_turn(self, taken: list[Group], room: int, now_s: float) -> int:
        """Take the next caller's share of a batch: a few rows, or one call of any size.

        Returns:
            The room that is left; 0 if the next call is for another batch.
        """
        waiting = self._ring.popleft()
        before, newest_first = waiting.num_rows, False
        if now_s - waiting.caller.gave_up_s < _GIVE_UP_MEMORY_S:
            newest_first = True
            waiting.drop_cancelled()  # else those at the other end would count as waiting
        turn = min(TURN_ROWS, room) if self._ring else room
        num_rows, is_closed = 0, False
        while waiting.groups:
            rows = waiting.groups[-1 if newest_first else 0].encoder.num_rows
            number = max(0, turn - num_rows) // rows
            if not number and num_rows:
                self._ring.append(waiting)
                break
            if not number and taken and rows > room:
                self._ring.appendleft(waiting)
                is_closed = True
                break
            take = waiting.take_newest if newest_first else waiting.take_oldest
            if (found := take(max(1, number)).open_calls()) is not None:
                taken.append(found)
                num_rows += found.num_rows
        self._note_taken(waiting, before - waiting.num_rows)
        return 0 if is_closed else room - num_rows

    def _note_taken(self, waiting: ClientQueue, num_rows: int) -> None:
        """Note that rows of a caller wait no more; an address without any is forgotten."""
        self.num_rows -= num_rows
        address = waiting.caller.address
        left = self._addresses[address] - num_rows
        if left:
            self._addresses[address] = left
        else:
            del self._addresses[address]

    def forget(self, caller: Caller) -> None:
        """Drop the calls of a closed connection."""
        waiting = caller.queues.pop(self, None)
        if waiting is not None and waiting.groups:
            self._ring.remove(waiting)
            self._note_taken(waiting, waiting.num_rows)

    def clear(self) -> list[Group]:
        """Take all calls, without a turn."""
        taken: list[Group] = []
        for waiting in self._ring:
            taken += waiting.groups
            waiting.groups.clear()
            waiting.num_rows = 0
        self._ring.clear()
        self._addresses.clear()
        self.num_rows = 0
        return taken

    def sweep(self, now_s: float) -> list[Group]:
        """Drop the calls whose callers have left, and take those whose deadline has passed."""
        late: list[Group] = []
        for waiting in list(self._ring):
            before = waiting.num_rows
            kept, gone = divide(open_calls(waiting.groups), now_s)
            late += gone
            waiting.groups = deque(kept)
            waiting.num_rows = sum(group.num_rows for group in kept)
            if not kept:
                self._ring.remove(waiting)
            self._note_taken(waiting, before - waiting.num_rows)
        return late
