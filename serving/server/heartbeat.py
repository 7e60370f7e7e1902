"""Whether a worker is frozen: it reports no more, though nothing keeps it from its core.

A worker that is only slow, on a busy machine, has a thread that waits for a core or for a disk.
"""

from serving.system.process import Activity

LOOK_S = 1.0
"""Seconds between two looks at a worker, which is as often as it reports."""
_MAX_MISSED = 4
"""Looks without a report: one that is well can be between two reports at two of them."""
_BUSY_S = 0.5
"""Processor time between two looks, without a report, that shows a loop without end."""


class Heartbeat:
    """Judges one worker, look by look."""

    def __init__(self) -> None:
        """Begin with no look."""
        self._num_missed = 0
        self._reported_s = 0.0
        self._cpu_s = 0.0

    def is_frozen(self, reported_s: float, activity: Activity) -> bool:
        """Take a look; return whether it has missed too many reports.

        Args:
            reported_s: when the worker last reported.
            activity: what it does.
        """
        computed_s, self._cpu_s = activity.cpu_s - self._cpu_s, activity.cpu_s
        if reported_s != self._reported_s:
            self._reported_s, self._num_missed = reported_s, 0
        elif not activity.is_waiting_for_machine or computed_s >= _BUSY_S:
            self._num_missed += 1
        return self._num_missed >= _MAX_MISSED
