"""Tables of the documentation, which tests compare with the code."""

from pathlib import Path

DOCS = Path(__file__).parents[2] / "docs"


def cells(page, begin, section=""):
    """Return the cells of the first row whose first one begins so, from a section's heading on."""
    text = (DOCS / page).read_text("utf-8")
    text = text[text.index(f"\n## {section}\n") :] if section else text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    return next(row for row in rows if row[0].startswith(begin))
