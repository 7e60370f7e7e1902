"""Pauses between tries that fail again and again.

use                                   first    factor  most       begins again with
WORKER_DEATHS   a worker ends         0.1 s    2       5 s        30 s of service; a model's crash
HANDLER_STARTS  a handler can't start 1 s      2       60 s       a start
HANDLER_ENDS    calls end a handler   1 start  2       10 starts  an end of which there are few
MODEL_CRASHES   a model ends workers  5 s      2       600 s      30 minutes in service
"""

import math
from typing import NamedTuple


class Series(NamedTuple):
    """The pauses of one use."""

    first: float
    """The first pause, in seconds or what else a use counts in."""
    most: float
    reset_s: float = math.inf
    """After this many good seconds a failure is the first again."""
    factor: float = 2.0


WORKER_DEATHS = Series(0.1, 5.0, reset_s=30.0)
HANDLER_STARTS = Series(1.0, 60.0)
HANDLER_ENDS = Series(1.0, 10.0)
MODEL_CRASHES = Series(5.0, 600.0, reset_s=1_800.0)
_MAX_EXPONENT = 64


class BackOff:
    """The failures of one thing."""

    def __init__(self, series: Series) -> None:
        """Begin without any."""
        self._series = series
        self.num_failures = 0
        """Failures in a row."""

    def fail(self, good_s: float = 0.0) -> float:
        """Count a failure; return the pause before the next try.

        Args:
            good_s: seconds that went well before it.
        """
        if good_s >= self._series.reset_s:
            self.reset()
        first, most, _, factor = self._series
        pause = min(most, first * factor ** min(self.num_failures, _MAX_EXPONENT))
        self.num_failures += 1
        return pause

    def reset(self) -> None:
        """Begin again: it has worked."""
        self.num_failures = 0
