"""Models whose runs end worker processes: how long each is not run.

After the first crash of a model, no worker runs it until the dead one is replaced: else the next
such call would end the other one meanwhile; should that one not come back, for 5 s. From the second
crash on, it is not run for 10 s, and for twice as long after each further one: see `MODEL_CRASHES`.
A model that is not run answers UNAVAILABLE.
"""

from dataclasses import dataclass, field

from serving.processes.back_off import MODEL_CRASHES, BackOff


@dataclass(slots=True)
class _Series:
    """The crashes of one version of a model."""

    crashes: BackOff = field(default_factory=lambda: BackOff(MODEL_CRASHES))
    blocked_until_s: float = 0.0
    is_pause: bool = False
    """Whether the block ends once all workers are back."""


class Crashes:
    """The crashes of all models, by the number of each; times are monotonic seconds."""

    def __init__(self) -> None:
        self._series: dict[int, _Series] = {}

    def note(self, model: int, now_s: float) -> tuple[int, float]:
        """Count a crash; return how many in a row they are, and for how long the model rests."""
        series = self._series.setdefault(model, _Series())
        block_s = series.crashes.fail(now_s - series.blocked_until_s)
        number = series.crashes.num_failures
        series.is_pause = number == 1
        series.blocked_until_s = now_s + block_s
        return number, block_s

    def end_pauses(self, now_s: float) -> None:
        """Let models run again that have crashed once: all workers are back."""
        for series in self._series.values():
            if series.is_pause:
                series.is_pause = False
                series.blocked_until_s = min(series.blocked_until_s, now_s)

    def blocked(self, now_s: float) -> dict[int, float]:
        """Return the models that must not run now, and until when."""
        return {
            model: series.blocked_until_s
            for model, series in self._series.items()
            if now_s < series.blocked_until_s
        }
