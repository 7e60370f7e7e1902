"""Who executes a model's rows: the owner, on the thread that reads, or runners."""

from enum import Enum, auto
from typing import NamedTuple

from serving.batching.queue import TURN_ROWS

_INLINE_ROWS = 128
"""The largest request that the owner runs itself: larger batches are hardly cheaper a row, so
another core may take them."""
_SHARED_ROWS = 63
"""The same where several cores are free: fewer rows take less than the way to a thread and back."""


class Place(Enum):
    """Where rows wait, and who executes them."""

    INLINE = auto()
    """The owner."""
    SMALL = auto()
    """Runners, in turns with `LARGE`."""
    LARGE = auto()
    """Runners."""


class Cost(NamedTuple):
    """How many rows of a model the owner runs, since they take a short time."""

    always_rows: int
    """The largest request that it always runs itself."""
    idle_rows: int
    """The most rows that it runs where no others wait or run."""

    @classmethod
    def of(cls, inline_rows: int, most_rows: int, num_runners: int) -> "Cost":
        """Return the cost of a model.

        Args:
            inline_rows: the most rows whose run is short; 0 if none is.
            most_rows: the largest batch.
            num_runners: the cores for runners.
        """
        largest = _INLINE_ROWS if num_runners == 1 else _SHARED_ROWS
        are_all_short = inline_rows >= min(_INLINE_ROWS, most_rows)
        always_rows = min(largest, inline_rows) if are_all_short else 0
        return cls(always_rows, min(_INLINE_ROWS, inline_rows))


def place(num_rows: int, cost: Cost, *, is_busy: bool) -> Place:
    """Return who executes rows.

        rows            others wait or run    short batches      place
        few             no                    1 row or more      INLINE, all at once
        up to 16        yes                   up to 127 rows     SMALL
        more            yes                   up to 127 rows     LARGE
        up to 128       yes                   128 rows or more   INLINE, in batches
        more            yes                   128 rows or more   LARGE
        up to 16        yes                   none               SMALL
        more            yes                   none               LARGE

    With several runners a request is too large for INLINE from 64 rows on, not from 129 on.

    Args:
        num_rows: of a request, or of all that wait.
        cost: the model's.
        is_busy: whether others wait or run, or may come meanwhile.
    """
    if num_rows <= cost.always_rows or (num_rows <= cost.idle_rows and not is_busy):
        return Place.INLINE
    return Place.SMALL if num_rows <= TURN_ROWS else Place.LARGE
