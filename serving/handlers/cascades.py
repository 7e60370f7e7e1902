"""Which handlers call which models: no circle, and not too deep."""

from collections.abc import Mapping, Sequence

MAX_DEPTH = 4
"""The most handlers that call one another for one call."""

Uses = Mapping[str, Sequence[str]]
"""The models that a model's handler calls, by its name."""


def trouble_of(name: str, uses: Uses) -> str | None:
    """Return why a model can't be served whose handler calls others; None if it can."""
    path = _longest(name, uses, (name,))
    if path[-1] in path[:-1]:
        return f"handlers call one another in a circle: {' -> '.join(path)}"
    if len(path) > MAX_DEPTH + 1:
        return f"more than {MAX_DEPTH} models call one another: {' -> '.join(path)}"
    return None


def _longest(name: str, uses: Uses, path: tuple[str, ...]) -> tuple[str, ...]:
    """Return the longest way from a model, or one that comes back to itself."""
    longest = path
    for other in uses.get(name, ()):
        further = (*path, other)
        if other in path or len(further) > MAX_DEPTH + 1:
            return further
        further = _longest(other, uses, further)
        if further[-1] in further[:-1] or len(further) > MAX_DEPTH + 1:
            return further
        longest = max(longest, further, key=len)
    return longest
