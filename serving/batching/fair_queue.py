"""The bounded, fair queue of requests that wait for a run: bookkeeping only, no threads, no clock.

Callers take turns (round robin) in two rings: those whose next request is small add a few images a
turn; those whose next request is large have it taken whole, since slices would make each take as
long as all together. The small go first, up to half of a batch, so that one caller's ten thousand
images never delay another's one. Every admitted request gets exactly one outcome: answered,
rejected or cancelled.
"""

from collections import OrderedDict
from collections.abc import Hashable

from serving.batching.batch import Piece
from serving.batching.request import Model, OnOutcome, Request, ignore
from serving.errors import DeadlineExceeded, DigitsError, Overloaded

_TURN_ROWS = 16
"""Images that a caller adds to a batch in a turn; a request of more is a large one."""


class FairQueue:
    """Requests that wait for a run."""

    def __init__(self, capacity: int) -> None:
        """Start empty; `capacity` counts images."""
        self.num_rows = 0
        """Images that wait."""
        self.waiting_since_s = 0.0
        """When the first request arrived since the queue was last empty."""
        self._capacity = capacity
        self._num_taken = 0
        self._callers: dict[Hashable, OrderedDict[Request, None]] = {}
        self._small: OrderedDict[Hashable, None] = OrderedDict()
        self._large: OrderedDict[Hashable, None] = OrderedDict()

    def admit(self, request: Request, model: Model, on_outcome: OnOutcome, now_s: float) -> None:
        """Queue a request for `model`.

        Raises:
            Overloaded: its rows do not fit; nothing has changed.
        """
        if self.num_rows + request.num_rows > self._capacity:
            raise Overloaded(f"the queue is full ({self.num_rows} of {self._capacity} images)")
        request.model, request.on_outcome = model, on_outcome
        request.arrived_s = now_s
        if not self.num_rows:
            self.waiting_since_s = now_s
        self.num_rows += request.num_rows
        queue = self._callers.get(request.caller)
        if queue is None:
            queue = self._callers[request.caller] = OrderedDict()
        queue[request] = None
        if len(queue) == 1:
            self._place(request.caller)

    def cancel(self, request: Request) -> None:
        """Settle a request without an outcome, so that its waiting rows never run."""
        if self._settle(request):
            request.on_outcome = ignore

    def fail(self, request: Request, error: DigitsError) -> None:
        """Reject a request, unless it is settled; its waiting rows never run."""
        if self._settle(request):
            request.deliver(error)

    def fail_all(self, error: DigitsError) -> None:
        """Reject all waiting requests."""
        for queue in list(self._callers.values()):
            for request in list(queue):
                self.fail(request, error)

    def take(self, max_rows: int, now_s: float, margin_s: float = 0.0) -> list[Piece]:
        """Take up to `max_rows` rows, turn by turn; reject expired requests.

        Args:
            max_rows: the most images of a batch.
            now_s: the current time.
            margin_s: a deadline that is closer than this counts as passed.

        Returns:
            The rows, none if nothing is left to run.
        """
        pieces: list[Piece] = []
        room, too_late_s = max_rows, now_s + margin_s
        self._num_taken += 1
        if self._large:
            half = (max_rows + self._num_taken % 2) // 2  # if max_rows is 1, every second time
            room -= self._take_turns(self._small, _TURN_ROWS, pieces, half, too_late_s)
        while (self._large or self._small) and room:
            room -= self._take_turns(self._large, max_rows, pieces, room, too_late_s)
            room -= self._take_turns(self._small, _TURN_ROWS, pieces, room, too_late_s)
        return pieces

    def _take_turns(
        self, ring: OrderedDict[Hashable, None], turn_rows: int, pieces: list[Piece], room: int,
        too_late_s: float,
    ) -> int:  # fmt: skip
        """Take up to `room` rows of a ring's callers; return how many."""
        left = room
        while ring and left:
            caller, _ = ring.popitem(last=False)
            turn = min(turn_rows, left) if ring else left
            left -= self._take_turn(self._callers[caller], pieces, turn, too_late_s)
            self._place(caller)
        return room - left

    def _place(self, caller: Hashable) -> None:
        """Put a caller into the ring of its next request, if it is not there yet."""
        queue = self._callers.get(caller)
        if not queue:
            for callers in (self._callers, self._small, self._large):
                callers.pop(caller, None)
            return
        request = next(iter(queue))
        is_large = request.num_rows - request.rows_taken > _TURN_ROWS
        ring, other = (self._large, self._small) if is_large else (self._small, self._large)
        other.pop(caller, None)
        ring.setdefault(caller)
        if is_large and request.rows_taken:
            ring.move_to_end(caller, last=False)

    def _take_turn(
        self, queue: OrderedDict[Request, None], pieces: list[Piece], room: int, too_late_s: float
    ) -> int:
        """Take up to `room` rows of a caller; return how many."""
        left = room
        while queue and left:
            request = next(iter(queue))
            if request.deadline_s <= too_late_s:
                error = DeadlineExceeded()
                self.fail(request, error)
                continue
            first = request.rows_taken
            rows = min(left, request.num_rows - first)
            pieces.append((request, first, rows))
            request.rows_taken += rows
            self.num_rows -= rows
            left -= rows
            if request.rows_taken == request.num_rows:
                del queue[request]
        return room - left

    def _settle(self, request: Request) -> bool:
        """Drop the waiting rows of a request; False if it never waited or was settled before."""
        if request.model is None or request.settled:
            return False
        request.settled = True
        waiting = request.num_rows - request.rows_taken
        if waiting:
            self.num_rows -= waiting
            del self._callers[request.caller][request]
            self._place(request.caller)
        return True
