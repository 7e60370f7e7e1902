"""How long to wait before a worker is started again, and when to give up."""

_FIRST_DELAY_S, _MAX_DELAY_S = 0.1, 5.0
"""How long a dead worker's place stays empty: doubled from death to death."""
_STABLE_S = 30.0
"""A worker that was ready this long has nothing to do with the deaths before it."""
_MAX_DEATHS = 5
"""More deaths in a row, in one place, are no accident."""


class Backoff:
    """The deaths of the workers in one place, in a row: without a long life between them."""

    def __init__(self) -> None:
        """Start without deaths."""
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
        doublings = min(self.num_deaths - 1, 10)  # far beyond the longest delay
        return min(_MAX_DELAY_S, _FIRST_DELAY_S * 2.0**doublings)

    @property
    def is_crash_loop(self) -> bool:
        """Whether workers that were ready crash again and again."""
        return self.num_crashes >= _MAX_DEATHS

    @property
    def is_death_loop(self) -> bool:
        """Whether workers die again and again, before they are ready or after."""
        return self.num_deaths >= _MAX_DEATHS
