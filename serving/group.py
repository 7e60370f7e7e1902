"""One-image calls that came together: queued and run as one request, answered each on its own.

A request object per call costs more than its share of a run does. A group costs one, however many
calls it holds; only a call that leaves or fails is looked at on its own.
"""

import copy
from collections.abc import Hashable, Sequence

from serving.requests import Answer, Batch, Request


class Group(Request):
    """Calls of one image each; subclasses say how answers travel back, as for `Request`.

    Each row of its `Answer`s is one call's; there may be several answers, for a row each or more.
    """

    __slots__ = ("images", "keys")
    is_one_call = False

    def __init__(self, caller: Hashable) -> None:
        """Start empty; `seal` it when all calls are in `keys` and `images`."""
        super().__init__(b"", caller=caller)
        self.keys: list[int] = []
        """What each call is known by."""
        self.images: list[bytes] = []
        """784 bytes a call."""

    def seal(self) -> None:
        """Count the calls; no more may be added."""
        self.num_rows = self.rows_left = len(self.keys)
        self.settled = not self.keys

    def split(self, num: int) -> "Group":
        """See `Request`."""
        if num == 0:
            return self
        rest = copy.copy(self)
        rest.keys, rest.images = self.keys[num:], self.images[num:]
        del self.keys[num:], self.images[num:]
        self.seal()
        rest.seal()
        return rest

    def rows(self, first: int, num: int) -> Sequence[bytes]:
        """See `Request`."""
        return self.images[first : first + num]

    def finish(self, first: int, digits: bytes, probabilities: bytes, batch: Batch) -> Answer:
        """See `Request`: these calls are answered now, whatever becomes of the others."""
        self._hand_over(len(digits))
        return Answer(digits, probabilities, batch, first=first, num_calls=len(digits))

    def singles(self, first: int, num: int) -> Sequence[Request]:
        """See `Request`: each call becomes a request of its own."""
        self._hand_over(num)
        singles = [self.single(row) for row in range(first, first + num)]
        for single in singles:
            single.home, single.arrived_s, single.rows_taken = self.home, self.arrived_s, 1
        return singles

    def single(self, row: int) -> Request:
        """Make a request of one call."""
        raise NotImplementedError

    def withdraw(self, key: int) -> bool:
        """See `Request`; False if it runs already, or has its answer."""
        try:
            row = self.keys.index(key, self.rows_taken)
        except ValueError:
            return False
        del self.keys[row], self.images[row]
        self.num_rows -= 1
        self.rows_left -= 1
        return True

    def _hand_over(self, num: int) -> None:
        self.rows_left -= num
        self.settled = not self.rows_left
