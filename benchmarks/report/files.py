"""Writes the report beside its results file, and the README's table into the README."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.report import page
from benchmarks.report.pictures import pictures as draw_all
from benchmarks.report.sections import summary, tables
from benchmarks.report.table import Table
from benchmarks.run.result_file import Results, UnusableResults
from reports.page import Picture

BEGIN, END = "<!-- benchmarks: written by `make bench-readme` -->", "<!-- /benchmarks -->"


def write(results: Results, path: Path) -> list[Path]:
    """Write NAME.md, NAME.html and a NAME-*.svg for each picture beside NAME.json.

    Returns:
        What was written.
    """
    made = tables(results)
    pictures = draw_all(results)
    files = {
        path.with_suffix(".md"): _markdown(results, made, pictures, path.stem).encode(),
        path.with_suffix(".html"): page.render(results, made, pictures).encode(),
    }
    files |= {
        path.with_name(f"{path.stem}-{name}.svg"): picture.svg for name, picture in pictures.items()
    }
    for file, content in files.items():
        file.write_bytes(content)
    return list(files)


def _markdown(
    results: Results, made: Sequence[Table], pictures: Mapping[str, Picture], stem: str
) -> str:
    parts = ["# Benchmark report", page.machine(results)]
    for number, table in enumerate(made):
        parts += [f"## {table.title}", table.note, table.markdown()]
        if number == 0:
            for name, picture in pictures.items():
                title, caption = page.CAPTIONS[name]
                parts += [f"## {title}", caption, f"![{picture.alt}]({stem}-{name}.svg)"]
    return "\n\n".join(part for part in parts if part) + "\n"


def readme_section(results: Results) -> str:
    """Return what stands between the README's two markers."""
    table = summary(results)
    return f"{BEGIN}\n\n{table.markdown()}\n\n{table.note} {page.machine(results)}\n\n{END}"


def update_readme(readme: Path, results: Results) -> bool:
    """Put the table into the README.

    Returns:
        Whether that changed it.

    Raises:
        UnusableResults: the README lacks the markers.
    """
    text = readme.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise UnusableResults(f"{readme} lacks the lines {BEGIN!r} and {END!r}")
    new = before + readme_section(results) + after
    readme.write_text(new, "utf-8")
    return new != text
