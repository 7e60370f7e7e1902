"""Tables of the documentation, which tests compare with the code."""

from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def cells(page, begin):
    """Return the cells of the first row of a page's tables whose first one begins so."""
    text = (DOCS / page).read_text("utf-8")
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return next(row for row in rows if row[0].startswith(begin))
