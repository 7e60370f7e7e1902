"""A table as rows of text, and how its numbers are written."""

from collections.abc import Sequence
from dataclasses import dataclass

NONE = "–"


@dataclass(frozen=True, slots=True)
class Table:
    """A heading row and rows, under a title and a note."""

    title: str
    note: str
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Write as markdown, without the title."""
        head, *body = ["| " + " | ".join(row) + " |" for row in self.rows]
        rule = "|---" + "|---:" * (len(self.rows[0]) - 1) + "|"
        return "\n".join([head, rule, *body])

    def text(self) -> str:
        """Lay out in columns, for a terminal."""
        widths = [max(map(len, column)) for column in zip(*self.rows, strict=True)]
        lines = (zip(row, widths, strict=True) for row in self.rows)
        return "\n".join("  ".join(c.ljust(w) for c, w in line).rstrip() for line in lines)


def seconds(value: float) -> str:
    """Write a time in the unit that suits it."""
    if value < 1e-3:
        return f"{value * 1e6:.3g} µs"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def short(number: float | None) -> str:
    """Write a number with three digits; a dash for None."""
    if number is None:
        return NONE
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"
