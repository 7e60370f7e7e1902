"""Pages of HTML that hold tables and pictures, and how pictures are drawn."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from string import Template

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from training.tables import Table

# In the dark, the pictures are inverted onto the same near-black and their hues turned back.
_PAGE = Template("""\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
  :root { --paper: #fff; --ink: #1f2933; --muted: #5f6b7a; --rule: #d9dee5;
          color-scheme: light dark; }
  @media (prefers-color-scheme: dark) {
    :root { --paper: #141414; --ink: #e6e8eb; --muted: #9aa5b1; --rule: #333a41; }
    img { filter: invert(0.92) hue-rotate(180deg); }
  }
  body { max-width: 56rem; margin: 0 auto; padding: 2rem 0.8rem 4rem; overflow-wrap: break-word;
         font: 16px/1.5 system-ui, sans-serif; background: var(--paper); color: var(--ink); }
  h1 { margin: 0; font-size: 2.4rem; line-height: 1.1; }
  h2 { margin: 2.5rem 0 0; font-size: 1.2rem; }
  p { max-width: 44rem; margin: 0.3rem 0 0.8rem; color: var(--muted); }
  /* A box that can be scrolled sideways has a shadow at the side where more is. */
  div { overflow-x: auto; background:
      linear-gradient(to right, var(--paper) 30%, transparent) 0 / 3rem 100% no-repeat local,
      linear-gradient(to left, var(--paper) 30%, transparent) 100% / 3rem 100% no-repeat local,
      linear-gradient(to right, #8888, transparent) 0 / 1rem 100% no-repeat scroll,
      linear-gradient(to left, #8888, transparent) 100% / 1rem 100% no-repeat scroll; }
  img { display: block; width: 100%; min-width: 346px; max-width: 42rem; height: auto; }
  table { width: 100%; border-collapse: collapse; font-variant-numeric: tabular-nums;
          font-size: 0.9rem; overflow-wrap: normal; }
  th, td { padding: 0.3rem 0.8rem 0.3rem 0; text-align: left; vertical-align: top;
           border-bottom: 1px solid var(--rule); font-weight: normal; }
  th[scope=col] { color: var(--muted); }
  th:last-child, td:last-child { padding-right: 0; }
</style>
<main>
<h1>$title</h1>
$body
</main>
</html>
""")
INK, MUTED, RULE = "#1f2933", "#697586", "#d9dee5"
WIDTH = 6.0
"""Every figure's width in inches: on a phone of 346 pixels, labels of 10 points have 8."""
_ACCURACIES = (0.0, 0.2, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999, 1.0)
"""Ticks of an axis of accuracies."""
_LEAST_ERROR = 5e-4
"""Added to a share of errors: 0 has no logarithm."""
_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


@dataclass(frozen=True, slots=True)
class PageFigure:
    """A drawing, and its alternative text."""

    svg: bytes
    alt: str
    """For those who can't see it: the figures, not only the kind of picture."""


def page(title: str, lead: Sequence[str], sections: Sequence[str]) -> str:
    """Write a page: its title, paragraphs of text, and sections."""
    body = "\n".join([*(f"<p>{escape(text)}</p>" for text in lead), *sections])
    return _PAGE.substitute(title=escape(title), body=body)


def section(title: str, note: str, content: Table | PageFigure) -> str:
    """Write a table or a picture under its heading and an explanation, which may be empty."""
    inner = _picture(content) if isinstance(content, PageFigure) else _table(content)
    parts = (
        f"<h2>{escape(title)}</h2>",
        f"<p>{escape(note)}</p>" if note else "",
        # Focusable, so that the keyboard can scroll it.
        f'<div role="region" aria-label="{escape(title)}" tabindex="0">{inner}</div>',
    )
    return "".join(parts)


def _picture(picture: PageFigure) -> str:
    source = f"data:image/svg+xml;base64,{base64.b64encode(picture.svg).decode()}"
    return f'<img alt="{escape(picture.alt)}" src="{source}">'


def _table(table: Table) -> str:
    """Write a table; its first row has the columns' headings, each first cell its row's."""
    heading, *rows = table
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in heading)
    body = (
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td>{escape(cell)}</td>" for cell in rest)
        + "</tr>"
        for first, *rest in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"


def draw(figure: Figure, alt: str) -> PageFigure:
    """Render a figure as an SVG file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    # Text stays text: smaller and searchable. The salt makes ids repeatable.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "digits"}):
        figure.savefig(buffer, format="svg", metadata=_METADATA)
    lines = (line.rstrip() for line in buffer.getvalue().splitlines())
    return PageFigure(b"\n".join(lines) + b"\n", alt)


def tidy(axes: Axes) -> None:
    """Give axes a light grid, and two thin lines instead of a frame."""
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=MUTED)


def scale_accuracy(axes: Axes, values: Sequence[float]) -> None:
    """Scale an axis of accuracies by the logarithm of the errors, from the worst to the best.

    So the first epochs are on it, and the last ones, which differ in tenths of a percent, can be
    told apart.
    """
    axes.set_yscale("function", functions=(_by_errors, _of_errors))
    worst, best = min(values), max(values)
    low = max((tick for tick in _ACCURACIES if tick <= worst), default=0.0)
    high = min((tick for tick in _ACCURACIES if tick >= best), default=1.0)
    axes.set_ylim(low, high)
    axes.yaxis.set_major_locator(FixedLocator([t for t in _ACCURACIES if low <= t <= high]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda tick, _: f"{100 * tick:.4g}%"))
    axes.yaxis.set_minor_locator(NullLocator())


def _by_errors(accuracies: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return -np.log10(1 + _LEAST_ERROR - np.minimum(accuracies, 1.0))


def _of_errors(places: npt.ArrayLike) -> npt.NDArray[np.float64]:
    return 1 + _LEAST_ERROR - 10.0 ** -np.asarray(places)


def scale_loss(axes: Axes) -> None:
    """Scale an axis of losses by their logarithm, with numbers that people read."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:g}")
