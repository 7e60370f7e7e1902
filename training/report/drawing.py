"""The common look of all reports' pictures: file format, colours, axes."""

import io

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from training.report.page import Picture

INK, MUTED, RULE = "#1f2933", "#697586", "#d9dee5"
WIDTH = 6.0
"""Of every figure, in inches: on a phone, 346 pixels wide, labels of 10 points have 8 pixels."""

_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def draw(figure: Figure, alt: str) -> Picture:
    """Render a figure as an SVG file; equal figures give equal bytes."""
    buffer = io.BytesIO()
    # Text stays text: smaller and searchable. The salt makes ids repeatable.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "digits"}):
        figure.savefig(buffer, format="svg", metadata=_METADATA)
    lines = (line.rstrip() for line in buffer.getvalue().splitlines())
    return Picture(b"\n".join(lines) + b"\n", alt)


def tidy(axes: Axes) -> None:
    """Give axes a light grid, and two thin lines instead of a frame."""
    axes.grid(color=RULE, linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(RULE)
    axes.tick_params(colors=MUTED)
