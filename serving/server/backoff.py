"""How long to wait before a worker is restarted, and when to give up."""

_FIRST_DELAY_S, _MAX_DELAY_S = 0.1, 5.0
"""Seconds before the first restart, doubled with each further death, and the most."""
_STABLE_S = 30.0
"""A worker that was ready for this long ends the series of deaths before it."""
_MAX_DEATHS = 5
"""Give up after this many consecutive deaths in one place."""


class Backoff:
    """Consecutive deaths of the workers in one place, without a long life between them."""

    def __init__(self) -> None:
        """Start at zero."""
        self.num_deaths = 0
        self.num_crashes = 0
        """Deaths of workers that were ready."""

    def delay_s(self, lived_s: float) -> float:
        """Count a death; return how long to wait.

        Args:
            lived_s: for how many seconds the worker was ready; 0 if it never was.
        """
        if lived_s >= _STABLE_S:
            self.num_deaths = self.num_crashes = 0
        self.num_deaths += 1
        self.num_crashes += lived_s > 0
        doublings = min(self.num_deaths - 1, 10)  # far past the longest delay
        return min(_MAX_DELAY_S, _FIRST_DELAY_S * 2.0**doublings)

    @property
    def is_crash_loop(self) -> bool:
        """Whether workers that were ready crash again and again."""
        return self.num_crashes >= _MAX_DEATHS

    @property
    def is_death_loop(self) -> bool:
        """Whether workers die again and again, before they are ready or after."""
        return self.num_deaths >= _MAX_DEATHS
