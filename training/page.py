"""The report as one HTML page that needs nothing beside it: no links, pictures inlined."""

import base64
from collections.abc import Mapping, Sequence
from html import escape
from string import Template
from typing import Any

Table = Sequence[Sequence[str]]
"""A heading and rows, all of the same length."""

CAPTIONS = {
    "curves": (
        "Learning",
        "Loss and accuracy by epoch. Training is measured with dropout on, and on images deformed "
        "as the recipe says; validation is measured without either, so it may well look better. "
        "Training's first epochs may lie below the accuracies shown.",
    ),
    "mistakes": (
        "Mistakes",
        "Misread test digits, the most confident mistakes first.",
    ),
    "confusion": (
        "What is taken for what",
        "Test images by real digit (rows) and predicted digit (columns). The diagonal is right; "
        "the stronger the colour beside it, the more common that mistake.",
    ),
    "samples": (
        "What it learned from",
        "The first training images and their labels.",
    ),
}
"""Heading and caption of each picture, in the order of the page."""

# In the dark, the pictures are inverted onto the same near-black and their hues turned back.
PAGE = Template("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Digit classifier: training report</title>
<style>
  :root { --paper: #fff; --ink: #1f2933; --muted: #5f6b7a; --rule: #d9dee5;
          color-scheme: light dark; }
  @media (prefers-color-scheme: dark) {
    :root { --paper: #141414; --ink: #e6e8eb; --muted: #9aa5b1; --rule: #333a41; }
    img { filter: invert(0.92) hue-rotate(180deg); }
  }
  body { max-width: 46rem; margin: 0 auto; padding: 2rem 1rem 4rem;
         font: 16px/1.5 system-ui, sans-serif; background: var(--paper); color: var(--ink); }
  h1 { margin: 0; font-size: 2.6rem; line-height: 1.1; }
  h2 { margin: 2.5rem 0 0; font-size: 1.2rem; }
  p { margin: 0.3rem 0 0.8rem; }
  p, th { color: var(--muted); font-weight: normal; }
  img { display: block; width: 100%; height: auto; }
  table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums; }
  th, td { padding: 0.3rem 1rem 0.3rem 0; text-align: left; border-bottom: 1px solid var(--rule); }
  th:last-child, td:last-child { padding-right: 0; text-align: right; }
</style>
<h1>$accuracy</h1>
<p>of the test digits are read correctly: $errors were not.</p>
<p>$training</p>
$sections
</html>
""")


def render(
    metrics: Mapping[str, Any],
    layers: Table,
    digits: Table,
    pictures: Mapping[str, bytes],
    study: Mapping[str, Table],
) -> str:
    """Write the page.

    Args:
        metrics: metrics.json.
        layers: the layer table.
        digits: the accuracy of each digit.
        pictures: PNG files, by the names in CAPTIONS.
        study: what is known of all recipes, by heading.
    """
    sections = [
        _table(_results(metrics)),
        *(_picture(pictures[name], *caption) for name, caption in CAPTIONS.items()),
        f"<h2>Digit by digit</h2>{_table(digits)}",
        f"<h2>Layers</h2>{_table(layers)}",
        *(f"<h2>{escape(title)}</h2>{_table(table)}" for title, table in study.items()),
    ]
    return PAGE.substitute(
        accuracy=f"{metrics['accuracy']['test']:.2%}",
        errors=f"{metrics['errors']['test']:,}",
        training=_training(metrics) + _calibration(metrics),
        sections="\n".join(sections),
    )


def _results(metrics: Mapping[str, Any]) -> Table:
    """Lay out what was measured."""
    sets = [
        (name, metrics["accuracy"][name], metrics["loss"][name]) for name in ("test", "validation")
    ]
    rows = [(name, f"{loss:.4f}", f"{accuracy:.2%}") for name, accuracy, loss in sets]
    return [("images", "loss", "accuracy"), *rows]


def _training(metrics: Mapping[str, Any]) -> str:
    """Tell in one sentence how the network was trained, as HTML."""
    libraries = ", ".join(f"{name} {version}" for name, version in metrics["libraries"].items())
    return escape(
        f"Recipe {metrics['recipe']}, seed {metrics['seed']}: {metrics['epochs']} epochs in "
        f"{metrics['train_seconds']:.0f} s on {metrics['device']}, {metrics['parameters']:,} "
        f"parameters ({libraries})."
    )


def _calibration(metrics: Mapping[str, Any]) -> str:
    """Tell in one sentence what its probabilities are worth, as HTML."""
    if "calibration" not in metrics:  # trained before it was measured
        return ""
    facts = metrics["calibration"]
    coverage = facts["coverage"]
    return escape(
        f" Calibrated on the validation images: temperature {facts['temperature']:.2f}, expected "
        f"calibration error on the test images {facts['ece']['after']:.2%} "
        f"({facts['ece']['before']:.2%} before). Of the {coverage['share']:.0%} of the test images "
        f"that it is surest of, {coverage['accuracy']:.2%} are read correctly; the least certain "
        f"has a probability of {coverage['least_certainty']:.2f}."
    )


def _picture(png: bytes, title: str, caption: str) -> str:
    """Inline a picture under its heading and caption."""
    source = f"data:image/png;base64,{base64.b64encode(png).decode()}"
    return f'<h2>{title}</h2><p>{caption}</p><img alt="{title}" src="{source}">'


def _table(table: Table) -> str:
    """Write a table, its first row as the heading."""
    heading, *rows = table
    lines = [_row("th", heading), *(_row("td", row) for row in rows)]
    return f"<table>{''.join(lines)}</table>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"
