"""How pictures are drawn: colours, axes, labels, and files that follow a reader's light or dark."""

import io
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.tables import seconds, short

WIDTH = 4.8
"""Inches: 460 pixels, so that text stays readable on a telephone of 360."""
INK = "#123456"
"""The colour of text and lines; in the file it is the reader's, light or dark."""
COLOURS = (
    "#2f7ed8", "#e08214", "#3a9d5d", "#d0483a", "#9b6bc2", "#808080", "#0f9fa8", "#c65d9a",
)  # fmt: skip
"""Colours that can be told apart on white and on near-black."""
_STYLE = """<style>
svg { color: #222; background: #fff }
@media (prefers-color-scheme: dark) { svg { color: #ddd; background: #181818 } }
</style>"""
_SHORT = 60
"""The greatest ratio of an axis's ends at which it has three ticks a decade."""
_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def scale_rate_and_latency(axes: Axes) -> None:
    """Make both axes logarithmic, rates along x and latencies along y, with numbers people read.

    Called once all is drawn: a short axis has more ticks.
    """
    axes.set(xscale="log", yscale="log")
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < _SHORT * low else (1,)))
        axis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))


def title(axes: Axes, text: str) -> None:
    """Write the title of a panel."""
    axes.set_title(text, loc="left", fontsize=10, fontweight="bold", color=INK)


def label(
    axes: Axes,
    text: str,
    at: tuple[float, float],
    offset: tuple[float, float],
    colour: str,
    size: float,
    weight: str = "normal",
) -> None:
    """Write a text beside a point, offset in points."""
    axes.annotate(
        text,
        at,
        offset,
        textcoords="offset points",
        color=colour,
        fontsize=size,
        fontweight=weight,
        annotation_clip=False,
    )


def tidy(axes: Axes) -> None:
    """Give axes a light grid, and two thin lines instead of a frame."""
    axes.grid(color=INK, alpha=0.15, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.tick_params(which="both", colors=INK, labelsize=9)
    axes.xaxis.label.set(color=INK, fontsize=9)
    axes.yaxis.label.set(color=INK, fontsize=9)


def svg(figure: Figure, said: str) -> str:
    """Write a figure as a file whose ink is the reader's; equal figures give equal bytes."""
    buffer = io.StringIO()
    figure.patch.set_visible(False)
    for axes in figure.axes:
        axes.patch.set_visible(False)
    # Text stays text: smaller, and searchable. The salt makes ids repeatable.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "benchmarks"}):
        figure.savefig(buffer, format="svg", metadata=_METADATA)
    head, tag, rest = buffer.getvalue().replace(INK, "currentColor").partition("<defs>")
    head = head.replace("<svg ", f'<svg role="img" aria-label="{escape(said)}" ', 1)
    lines = (line.rstrip() for line in (head + _STYLE + tag + rest).splitlines())
    return "\n".join(lines) + "\n"
