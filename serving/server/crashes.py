"""Models whose runs end worker processes: how long each is not run.

After the first crash of a model, no worker runs it until the dead one is replaced: else the next
such call would end the other one meanwhile. From the second crash on, it is not run for 10 s, and
for twice as long after each further one. A model that is not run answers UNAVAILABLE.
"""

from dataclasses import dataclass

_PAUSE_S = 5.0
"""The longest pause after the first crash, should the dead worker not come back."""
_FIRST_BLOCK_S, _MAX_BLOCK_S = 10.0, 600.0
"""How long a model is not run after its second crash, doubled with each further one; the most."""
_FORGET_S = 1_800.0
"""A crash so long after the last block is the first of a new series."""


@dataclass(slots=True)
class _Series:
    """The crashes of one version of a model."""

    number: int = 0
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
        if now_s > series.blocked_until_s + _FORGET_S:
            series.number = 0
        series.number += 1
        series.is_pause = series.number == 1
        block_s = _PAUSE_S
        if not series.is_pause:
            block_s = min(_MAX_BLOCK_S, _FIRST_BLOCK_S * 2.0 ** min(series.number - 2, 10))
        series.blocked_until_s = now_s + block_s
        return series.number, block_s

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
