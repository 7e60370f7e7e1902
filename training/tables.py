"""Tables of text, for a terminal or a page."""

from collections.abc import Sequence

Table = Sequence[Sequence[str]]
"""A heading and rows, all of the same length."""


def as_text(table: Table) -> str:
    """Format a table in columns, for a terminal; columns of numbers are aligned to the right."""
    columns = list(zip(*table, strict=True))
    aligned = [
        [cell.rjust(width) if _has_numbers(column) else cell.ljust(width) for cell in column]
        for column in columns
        for width in [max(map(len, column))]
    ]
    rows = zip(*aligned, strict=True)
    return "".join("  ".join(row).rstrip() + "\n" for row in rows)


def _has_numbers(column: Sequence[str]) -> bool:
    """Return whether all cells below the heading are numbers, or empty."""
    cells = column[1:]
    return any(cells) and all(cell[:1].isdecimal() or cell in ("", "-") for cell in cells)
