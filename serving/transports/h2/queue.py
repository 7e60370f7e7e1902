"""The queue of calls that wait for a run; connections take turns."""

from collections import deque
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from serving.protocols.plan import Plan
    from serving.transports.h2.connection import Connection

Entry = tuple[Any, bytes, bytes | memoryview, "Plan", float, float, Any]
"""A call's images: [0] connection, [1] stream, [2] their bytes, [3] plan, [4] arrival and [5]
deadline in monotonic seconds, [6] its `Slot` in a stream, None for a unary call. A plain tuple,
since each call makes one: a NamedTuple takes 0.2 µs longer."""

_TURN_ROWS = 16
"""Images that one connection adds to a batch before the others' turn."""
_SHARE_OF_PATIENCE = 0.25
"""How much of its time a call may wait for the runs before its own: under overload reading and
refusing take as long again, and so do the network and the kernel."""
_GIVE_UP_MEMORY_S = 1.0
"""How long callers that gave up are remembered."""


class Queue:
    """Calls that were read and have not run; used by the loop's thread only."""

    def __init__(self, capacity: int) -> None:
        """Start empty; `capacity` counts images."""
        self.num_rows = 0
        self.oldest_s = 0.0
        """When the first call arrived in the empty queue, in monotonic seconds."""
        self._capacity = capacity
        self.run_rows = 1
        """The most images of a run."""
        self.row_s = 0.0
        """Seconds for an image in full runs, with the reading before: a moving average."""
        self._ring: deque[Connection] = deque()
        self._gave_up_s = -_GIVE_UP_MEMORY_S

    def room(self, timeout_s: float) -> float:
        """Return how many more images of calls with this timeout may wait.

        What fits in the next run is never refused, however long the last runs took.
        """
        max_rows: float = self._capacity
        if self.row_s:
            patience = timeout_s * _SHARE_OF_PATIENCE / self.row_s
            max_rows = min(max_rows, max(self.run_rows, patience))
        return max_rows - self.num_rows

    @property
    def has_room_for_streams(self) -> bool:
        """Whether streams may add to it: half is left for unary calls, which can't be stalled."""
        return self.num_rows < self._capacity // 2 or not self.num_rows

    def put(self, entry: Entry) -> None:
        """Add a call."""
        self.put_all(entry[0], [entry], entry[3].num_rows)

    def put_all(self, connection: Any, entries: list[Entry], num_rows: int) -> None:
        """Add calls of one connection, with `num_rows` images in all."""
        if not connection.waiting:
            if not self._ring:
                self.oldest_s = entries[0][4]
            self._ring.append(connection)
        connection.waiting += entries
        self.num_rows += num_rows

    def note_cancelled(self, now_s: float) -> None:
        """Record that a caller gave up."""
        self._gave_up_s = max(self._gave_up_s, now_s)

    def take(self, max_rows: int, now_s: float) -> tuple[list[Entry], list[Entry]]:
        """Take up to `max_rows` images, or one call that is larger.

        The newest go first while callers give up, for their deadlines are not known: the oldest are
        about to be cancelled, so first come, first served would answer nobody in time.

        Returns:
            The calls to run, and those whose deadline has passed. Cancelled ones are in neither.
        """
        taken: list[Entry] = []
        room = max_rows
        if self.num_rows <= max_rows:
            for connection in self._ring:
                streams = connection.streams
                taken += [entry for entry in connection.waiting if entry[1] in streams]
                connection.waiting.clear()
            self._ring.clear()
            self.num_rows = 0
        else:
            newest_first = now_s - self._gave_up_s < _GIVE_UP_MEMORY_S
            while self._ring and room > 0:
                room -= self._take_turn(taken, room, newest_first=newest_first)
        late = [entry for entry in taken if entry[5] <= now_s]
        return ([entry for entry in taken if entry[5] > now_s] if late else taken), late

    def _take_turn(self, taken: list[Entry], room: int, *, newest_first: bool) -> int:
        """Take the next connection's share of a batch: a few images, or one call of any size.

        Returns:
            The images taken; `room` if the next call is for another batch.
        """
        connection = self._ring.popleft()
        waiting, streams = connection.waiting, connection.streams
        if newest_first:  # else the cancelled ones at the other end would count as waiting
            while waiting and waiting[0][1] not in streams:
                self.num_rows -= waiting.popleft()[3].num_rows
        turn = min(_TURN_ROWS, room) if self._ring else room
        num_rows = 0
        while waiting:
            entry = waiting[-1 if newest_first else 0]
            rows = entry[3].num_rows
            is_alive = entry[1] in streams
            if is_alive and num_rows and num_rows + rows > turn:
                self._ring.append(connection)
                break
            if is_alive and taken and not num_rows and rows > room:
                self._ring.appendleft(connection)
                return room
            waiting.pop() if newest_first else waiting.popleft()
            self.num_rows -= rows
            if is_alive:
                taken.append(entry)
                num_rows += rows
        return num_rows

    def forget(self, connection: "Connection") -> None:
        """Drop the calls of a closed connection."""
        if connection.waiting:
            self.num_rows -= sum(entry[3].num_rows for entry in connection.waiting)
            connection.waiting.clear()
            self._ring.remove(connection)
