"""The report as one HTML page that needs nothing beside it: no links, pictures inlined."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from string import Template

from benchmarks.results import Results
from benchmarks.table import Table

CAPTIONS = {
    "knee": (
        "The knee",
        "Closed loops of 1, 2, 4 ... callers: throughput grows until the target is full, then only "
        "latency does.",
    ),
    "server": (
        "The Server scenario",
        "Open loop: calls come when they come, and latency counts from the intended send time. "
        "Each dot is one rate that was tried; the vertical line is the highest that kept to the "
        "objective, median of the rounds.",
    ),
    "latency": ("Latency", "One call of one image at a time, all rounds together."),
    "batches": ("Batch size", "Offline: as many calls as the target can use, of so many images."),
    "formed": (
        "Batches that formed",
        "Share of the model's runs by size, for calls of one image: an idle engine never waits, "
        "a busy one takes what has come meanwhile.",
    ),
    "cost": ("Processor time", "Of the target alone, for a call of one image."),
}
"""Heading and caption of each picture, in the order of the page."""

PAGE = Template("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Digit serving: benchmark report</title>
<style>
  :root { --paper: #fff; --ink: #1f2933; --muted: #5f6b7a; --rule: #d9dee5;
          color-scheme: light dark; }
  @media (prefers-color-scheme: dark) {
    :root { --paper: #141414; --ink: #e6e8eb; --muted: #9aa5b1; --rule: #333a41; }
    img { filter: invert(0.92) hue-rotate(180deg); }
  }
  body { max-width: 60rem; margin: 0 auto; padding: 2rem 1rem 4rem;
         font: 16px/1.5 system-ui, sans-serif; background: var(--paper); color: var(--ink); }
  h1 { margin: 0; font-size: 2.2rem; line-height: 1.1; }
  h2 { margin: 2.5rem 0 0; font-size: 1.2rem; }
  p { margin: 0.3rem 0 0.8rem; }
  p, th { color: var(--muted); font-weight: normal; }
  img { display: block; width: 100%; height: auto; }
  div { overflow-x: auto; }
  table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums;
          font-size: 0.9rem; }
  th, td { padding: 0.3rem 1rem 0.3rem 0; text-align: left; border-bottom: 1px solid var(--rule); }
</style>
<h1>Benchmark report</h1>
<p>$machine</p>
$sections
</html>
""")


def render(results: Results, tables: Sequence[Table], pictures: Mapping[str, bytes]) -> str:
    """Write the page.

    Args:
        results: tells of the machine.
        tables: the first comes before the pictures, the others after.
        pictures: PNG files, by the names in CAPTIONS.
    """
    drawn = [_picture(pictures[name], *CAPTIONS[name]) for name in CAPTIONS if name in pictures]
    first, *rest = map(_table, tables)
    sections = "\n".join((first, *drawn, *rest))
    return PAGE.substitute(machine=escape(machine(results)), sections=sections)


def machine(results: Results) -> str:
    """Tell in a few sentences what was measured where, and with what."""
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


def _picture(png: bytes, title: str, caption: str) -> str:
    """Inline a picture under its heading and caption."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<h2>{title}</h2><p>{caption}</p><img alt="{title}" src="{source}">'


def _table(table: Table) -> str:
    """Write a table, its first row as the heading."""
    heading, *rows = table.rows
    lines = [_row("th", heading), *(_row("td", row) for row in rows)]
    title, note = escape(table.title), escape(table.note)
    return f"<h2>{title}</h2><p>{note}</p><div><table>{''.join(lines)}</table></div>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
