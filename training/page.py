"""Pages of HTML that hold tables and pictures, and how pictures are drawn."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

from serving.commandline import html_page
from training.tables import Table

# In the dark, the pictures are inverted onto the same near-black and their hues turned back.
_STYLE = """\
  @media (prefers-color-scheme: dark) { img { filter: invert(0.92) hue-rotate(180deg); } }
  img { display: block; width: 100%; min-width: 346px; max-width: 42rem; height: auto; }
"""
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
    return html_page.page(title, body, _STYLE)


def section(title: str, note: str, content: Table | PageFigure) -> str:
    """Write a table or a picture under its heading and an explanation, which may be empty."""
    inner = _picture(content) if isinstance(content, PageFigure) else html_page.table(content)
    parts = (
        f"<h2>{escape(title)}</h2>",
        f"<p>{escape(note)}</p>" if note else "",
        html_page.region(title, inner),
    )
    return "".join(parts)


def _picture(picture: PageFigure) -> str:
    source = f"data:image/svg+xml;base64,{base64.b64encode(picture.svg).decode()}"
    return f'<img alt="{escape(picture.alt)}" src="{source}">'


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
