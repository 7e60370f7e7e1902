"""What a handler counts itself, until its process sends it to the server."""

import re
import threading
from typing import Any

from serving.telemetry.metrics import MAX_OWN_NAMES, OwnCounts

_NAME = re.compile(r"[a-zA-Z][a-zA-Z0-9_]{0,63}")
_MAX_LABELS, _MAX_CHARACTERS = 4, 128
_TAKEN = frozenset({"model", "version", "le"})
"""Labels that are the server's."""


class HandlerMetrics:
    """A handler's own metrics; any thread may use them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._known: dict[str, tuple[str, frozenset[str]]] = {}
        """The kind and the labels of each name."""
        self._counts = OwnCounts()

    def count(self, name: str, amount: float = 1, /, **labels: object) -> None:
        """Count something: the metric `handler_NAME_total`.

        Args:
            name: letters, digits and `_`, such as "cache_hits"; at most 32 names.
            amount: how much is added; at least 0.
            labels: up to four, always the same for a name. At most 100 combinations of values are
                counted, the others as "other".

        Raises:
            ValueError: a name or a label can't be one, or was used otherwise before.
        """
        if not 0 <= amount < float("inf"):
            raise ValueError(f"metrics.count: expected an amount of at least 0, got {amount!r}")
        with self._lock:
            self._counts.count(name, self._checked("count", name, labels), amount)

    def observe(self, name: str, value: float, /, **labels: object) -> None:
        """Note a value: the histogram `handler_NAME`, of bounds from 0.0001 to 10,000.

        See `count` for the arguments.
        """
        if not abs(value) < float("inf"):
            raise ValueError(f"metrics.observe: expected a number, got {value!r}")
        with self._lock:
            self._counts.observe(name, self._checked("observe", name, labels), value)

    def _checked(self, kind: str, name: str, labels: dict[str, object]) -> tuple[Any, ...]:
        known = self._known.get(name)
        found = kind, frozenset(labels)
        if known is None:
            self._check_new(kind, name, labels)
            self._known[name] = found
        elif known != found:
            before = f"metrics.{known[0]} with the labels {', '.join(sorted(known[1])) or 'none'}"
            raise ValueError(f"metrics.{kind}: {name} was used before by {before}")
        return tuple(
            (label, str(value)[:_MAX_CHARACTERS]) for label, value in sorted(labels.items())
        )

    def _check_new(self, kind: str, name: str, labels: dict[str, object]) -> None:
        for each in (name, *labels):
            if not isinstance(each, str) or not _NAME.fullmatch(each) or each in _TAKEN:
                raise ValueError(f"metrics.{kind}: {each!r:.80} can't be a name or a label")
        if len(labels) > _MAX_LABELS:
            raise ValueError(f"metrics.{kind}: {name}: more than {_MAX_LABELS} labels")
        if len(self._known) >= MAX_OWN_NAMES:
            raise ValueError(f"metrics.{kind}: {name}: more than {MAX_OWN_NAMES} names")

    def take(self) -> Any:
        """Return what was counted since the last time, as JSON has it; None if nothing was."""
        if self._counts.is_empty:
            return None
        with self._lock:
            taken, self._counts = self._counts, OwnCounts()
        return taken.document()
