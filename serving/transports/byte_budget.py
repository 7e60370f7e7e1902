"""The bytes that callers of a loop may have here: of requests on their way, and of long answers.

Requests that have not come whole share one budget: it says who may send on, and who waits.

A small request just comes. A large one, whose length its first bytes say, reserves that length
before more of it is read; where that does not fit, its caller is not read (HTTP/2's flow control,
TCP's) until it does. So each that is let in can come whole, one at least, and nobody is refused
only because others send, too.

Without the budget a thousand callers, each within its own limits, would take all memory.

Long answers that are not sent yet are counted beside the requests, by the same limit: an answer
that finds no room is refused, and a request never is because others read slowly.
"""

import math
import weakref
from collections import Counter, deque
from collections.abc import Callable
from typing import Any, Protocol

from serving.errors import Overloaded
from serving.system.libc import FREE_BYTES, trim_memory

_RESERVED_SHARE = 0.75
"""How much of the budget may be reserved; the rest is for small requests and for who waits."""
_PATIENCE_S = 5.0
"""How long callers wait before one that is let in, and slow, is refused for them."""
_SLOW_S = 30.0
"""A request that takes longer than this at its present rate is slow."""


class Arriving(Protocol):
    """A request that arrives."""

    @property
    def peer(self) -> Any:
        """Its caller."""

    @property
    def is_running(self) -> bool:
        """Whether it has come whole."""

    def resume_reading(self) -> None:
        """Let more of it come."""

    def refuse_bytes(self) -> None:
        """End it: there is no room for its bytes."""


class _Reservation:
    """The room of a request that was let in."""

    __slots__ = ("num_bytes", "since_s")

    def __init__(self, num_bytes: int, since_s: float) -> None:
        self.num_bytes = num_bytes
        self.since_s = since_s


class Budget:
    """The bytes of requests that have not come whole, or are not answered; and of long answers."""

    def __init__(self, clock: Callable[[], float], hurry: Callable[[], None]) -> None:
        """Start with none, and without a limit; `hurry` has `tick` called soon."""
        self._clock = clock
        self._hurry = hurry
        self.max_bytes = 1 << 62
        """The most of all requests together; of long answers three quarters."""
        self.free_bytes = 1 << 62
        """Requests up to this size reserve nothing: a stream's window lets them come as a whole."""
        self._held: dict[Arriving, int] = {}
        self._num_held = 0
        self._reserved: dict[Arriving, _Reservation] = {}
        self._num_reserved = 0
        self._reserved_by: Counter[str] = Counter()
        """What each address has reserved."""
        self._waiting: dict[str, dict[Arriving, _Reservation]] = {}
        """Those that wait to be let in by their addresses, the longest waiting first.

        Letting one in looks at addresses, not at calls: a connection may close with thousands.
        """
        self._num_unsent = 0
        self._sent: deque[int] = deque()
        """Bytes of long answers that are gone, and that `_num_unsent` has yet."""
        self.refused_s = -math.inf
        """When the last answer found no room."""
        self._num_released = 0
        """Bytes that were held and are gone since memory was given back."""
        self._trim_s = math.inf

    def hold(self, call: Arriving, num_bytes: int) -> None:
        """Note the bytes that a request holds; 0 ends its reservation, too.

        Past the limit, requests that have not come whole are refused.
        """
        self._num_held += num_bytes - self._held.get(call, 0)
        if num_bytes:
            self._held[call] = num_bytes
        else:
            self._num_released += self._held.pop(call, 0)
            self._release(call)
        if self._num_held > self.max_bytes:
            self._make_room()

    def hold_answer(self, answer: Any) -> None:
        """Count a long answer until nothing refers to it: it was sent, or its caller has left.

        Args:
            answer: its bytes, in any object of a length.

        Raises:
            Overloaded: too many bytes of others are held; a lone one always fits.
        """
        num_bytes, others = len(answer), self.num_unsent
        if others and others + num_bytes > self.max_bytes * _RESERVED_SHARE:
            self.refused_s = self._clock()
            raise Overloaded("too many bytes of answers are not sent yet")
        self._num_unsent += num_bytes
        # The last reference may go on any thread, and a deque takes from all.
        weakref.finalize(answer, self._sent.append, num_bytes).atexit = False

    @property
    def num_unsent(self) -> int:
        """The bytes of long answers that are not gone."""
        self._count_sent()
        return self._num_unsent

    def _count_sent(self) -> None:
        while self._sent:
            num_bytes = self._sent.popleft()
            self._num_unsent -= num_bytes
            self._num_released += num_bytes

    def admit(self, call: Arriving, num_bytes: int) -> bool:
        """Return whether a request of a length may come; if not, it is resumed once it may."""
        if num_bytes <= self.free_bytes:
            return True
        reservation = self._reserved.get(call)
        if reservation is not None and num_bytes <= reservation.num_bytes:
            return True
        if self.is_waiting(call):
            return False
        if not self._waiting and self._fits(num_bytes):
            self._reserve(call, num_bytes)
            return True
        waiting = self._waiting.setdefault(call.peer.address, {})
        waiting[call] = _Reservation(num_bytes, self._clock())
        self._hurry()
        return False

    def has_room(self, call: Arriving, num_bytes: int) -> bool:
        """Return whether a request that has come whole may grow to this size; one always may."""
        others = self._num_held - self._held.get(call, 0)
        return not others or others + num_bytes <= self.max_bytes * _RESERVED_SHARE

    def is_waiting(self, call: Arriving) -> bool:
        """Return whether a request waits to be let in."""
        return call in self._waiting.get(call.peer.address, ())

    def admitted_s(self, call: Arriving) -> float:
        """Return when a request was let in, in monotonic seconds; 0 if it was not."""
        reservation = self._reserved.get(call)
        return 0.0 if reservation is None else reservation.since_s

    @property
    def is_contended(self) -> bool:
        """Whether requests wait to be let in."""
        return bool(self._waiting)

    def tick(self, now_s: float) -> None:
        """Refuse slow requests that keep others waiting; give back memory that is left free."""
        self._give_back(now_s)
        while self._waiting:
            oldest_s = min(next(iter(calls.values())).since_s for calls in self._waiting.values())
            slow = self._slowest(now_s)
            if slow is None or now_s - oldest_s < _PATIENCE_S:
                return
            slow.refuse_bytes()

    def _give_back(self, now_s: float) -> None:
        """Give memory back to the kernel, a second later: others may have the bytes yet."""
        self._count_sent()
        if self._num_released > FREE_BYTES:
            self._num_released, self._trim_s = 0, min(self._trim_s, now_s + 1.0)
        if now_s >= self._trim_s:
            self._trim_s = math.inf
            trim_memory()

    def _slowest(self, now_s: float) -> Arriving | None:
        """Return the request that will take longest, if that is too long."""
        times_s: dict[Arriving, float] = {}
        for call, reservation in self._reserved.items():
            age_s = now_s - reservation.since_s
            if age_s >= _PATIENCE_S and not call.is_running:
                times_s[call] = age_s * reservation.num_bytes / max(1, self._held.get(call, 0))
        slowest = max(times_s, key=times_s.__getitem__, default=None)
        return slowest if slowest is not None and times_s[slowest] > _SLOW_S else None

    def _fits(self, num_bytes: int) -> bool:
        most = self.max_bytes * _RESERVED_SHARE
        return not self._reserved or self._num_reserved + num_bytes <= most

    def _reserve(self, call: Arriving, num_bytes: int) -> None:
        self._unreserve(call)
        self._num_reserved += num_bytes
        self._reserved_by[call.peer.address] += num_bytes
        self._reserved[call] = _Reservation(num_bytes, self._clock())

    def _unreserve(self, call: Arriving) -> bool:
        """End a reservation; return whether there was one."""
        reservation = self._reserved.pop(call, None)
        if reservation is None:
            return False
        address = call.peer.address
        self._num_reserved -= reservation.num_bytes
        self._reserved_by[address] -= reservation.num_bytes
        if not self._reserved_by[address]:
            del self._reserved_by[address]
        return True

    def _release(self, call: Arriving) -> None:
        self._stop_waiting(call)
        if self._unreserve(call):
            self._let_in()

    def _stop_waiting(self, call: Arriving) -> None:
        address = call.peer.address
        waiting = self._waiting.get(address, {})
        if waiting.pop(call, None) is not None and not waiting:
            del self._waiting[address]

    def _let_in(self) -> None:
        """Let waiting requests in, as far as they fit: first of addresses that have the least."""
        while self._waiting:
            address = min(self._waiting, key=self._reserved_by.__getitem__)
            call, reservation = next(iter(self._waiting[address].items()))
            if not self._fits(reservation.num_bytes):
                return
            self._stop_waiting(call)
            if not call.is_running:  # else the rest was on its way
                self._reserve(call, reservation.num_bytes)
                call.resume_reading()

    def _make_room(self) -> None:
        """Refuse requests: first those that were not let in, of the addresses with the most."""
        sizes: Counter[str] = Counter()
        for call, size in self._held.items():
            sizes[call.peer.address] += size
        held = [call for call in self._held if not call.is_running]
        held.sort(key=lambda call: (sizes[call.peer.address], self._held[call]), reverse=True)
        held.sort(key=self._reserved.__contains__)  # keeps the order among equals
        for victim in held:  # down to three quarters, so that this is not done at each byte
            most = self.max_bytes if victim in self._reserved else self.max_bytes * 3 // 4
            if self._num_held <= most:
                break
            victim.refuse_bytes()
