"""How long a server with calls to answer has sent nothing, and when it counts as gone."""

_SILENCE_S = 10.0
"""After this time it is asked for a sign of life."""
_PATIENCE_S = 5.0
"""How long it may take for it."""


class Silence:
    """The time since the first call that nothing was heard after; outlasts calls that time out."""

    def __init__(self) -> None:
        """Start with nothing asked."""
        self._since_s: float | None = None
        self._asked_s: float | None = None

    def begin(self, now_s: float) -> None:
        """Note that a call was sent."""
        if self._since_s is None:
            self._since_s = now_s

    def end(self) -> None:
        """Note that the server has sent something."""
        self._since_s = self._asked_s = None

    def is_long(self, now_s: float) -> bool:
        """Return whether it is time to ask, or was before."""
        return self._since_s is not None and now_s - self._since_s >= _SILENCE_S

    def ask(self, now_s: float) -> bool:
        """Return whether to ask the server now, which counts as done."""
        is_due = self._asked_s is None
        if is_due:
            self._asked_s = now_s
        return is_due

    def is_death(self, now_s: float) -> bool:
        """Return whether the server did not even answer that."""
        return self._asked_s is not None and now_s - self._asked_s >= _PATIENCE_S
