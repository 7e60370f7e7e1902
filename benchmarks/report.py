"""The report: a page of Markdown with a picture, and the README's section."""

import os
import re
from pathlib import Path

from benchmarks import tables
from benchmarks.figures import Figures
from benchmarks.result_file import Results, UnusableResults

BEGIN, END = "<!-- benchmarks: written by `make bench-readme` -->", "<!-- /benchmarks -->"

PICTURE = "![Rates by calls in flight, and latency by percentile](benchmarks/results/bench.svg)"


def write(results: Results, path: Path) -> Path:
    """Write NAME.md and NAME.svg beside NAME.json, and return the page's path."""
    page, parts = path.with_suffix(".md"), ["# Benchmark report", machine(results)]
    if drawn := _picture(results):
        path.with_suffix(".svg").write_text(drawn, "utf-8")
        parts.append(f"![Rates by calls in flight, and latency by percentile]({path.stem}.svg)")
    for table in tables.every(results):
        parts += [f"## {table.title}", table.note, table.markdown()]
    page.write_text("\n\n".join(parts) + "\n", "utf-8")
    return page


def _picture(results: Results) -> str:
    """Return the picture; empty if there is nothing to draw, or nothing to draw it with."""
    # Its list of fonts would stand in the home otherwise.
    user = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    os.environ.setdefault("MPLCONFIGDIR", str(Path(user) / "digit-serving" / "matplotlib"))
    try:
        from benchmarks import pictures  # matplotlib takes half a second to import
    except ModuleNotFoundError:
        return ""
    return pictures.draw(results)


def machine(results: Results) -> str:
    """Say in a few sentences where and with which software was measured."""
    there, settings = results.environment, results.settings
    cores = there["cores_for"]
    generators = sorted({sample.generator for sample in results.samples})
    packages = ", ".join(f"{name} {version}" for name, version in there["packages"].items())
    return (
        f"Suite {results.suite}, {results.date}, commit {there['commit']}. {there['cpu']}, "
        f"{there['cores']} cores: {cores['target']} for the target, {cores['generator']} for the "
        f"generator. GPU: {there['gpu'] or 'none'}. Governor: {there['governor'] or 'unknown'}. "
        f"{settings['rounds']} interleaved rounds of {settings['seconds']:g} s a run; arrivals in "
        f"the Server scenario: {settings['arrivals']}. Load by: {', '.join(generators)}. "
        f"Python {there['python']}, {packages}."
    )


def readme_section(results: Results) -> str:
    """Return the text between the README's two markers, with them."""
    figures = Figures(results)
    table, note = tables.targets(figures), machine(results)
    parts = [table.markdown(), tables.tails(figures).markdown(), PICTURE, f"{table.note} {note}"]
    return "\n\n".join([BEGIN, *parts, END])


def update_readme(readme: Path, results: Results) -> bool:
    """Put the table into the README; return whether that changed it.

    Raises:
        UnusableResults: the README lacks the markers.
    """
    old = readme.read_text("utf-8")
    between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    new, num_found = between.subn(lambda _: readme_section(results), old)
    if not num_found:
        raise UnusableResults(f"{readme} lacks the lines {BEGIN!r} and {END!r}")
    readme.write_text(new, "utf-8")
    return new != old
