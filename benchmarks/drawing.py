"""How pictures are drawn: colours, axes, labels, and files that follow a reader's light or dark."""

import io
from collections.abc import Callable, Mapping, Sequence
from html import escape

import matplotlib
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.tables import seconds, short
from benchmarks.targets import PRODUCT

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
_LINE = 12.0
"""Points: of a line of text."""
_SHORT = 60
"""The greatest ratio of an axis's ends at which it has three ticks a decade."""
_METADATA = dict.fromkeys(("Creator", "Date", "Format", "Type"))


def scale_rate_and_latency(axes: Axes) -> None:
    """Make both axes logarithmic, rates along x and latencies along y.

    Called once all is drawn: a short axis has more ticks.
    """
    axes.set(xscale="log", yscale="log")
    write_numbers(axes.xaxis, short)
    write_numbers(axes.yaxis, seconds)


def write_numbers(axis: Axis, text: Callable[[float], str]) -> None:
    """Write numbers that people read on a logarithmic axis whose limits are final."""
    low, high = axis.get_view_interval()
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < _SHORT * low else (1,)))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))


def title(axes: Axes, text: str) -> None:
    """Write the title of a panel."""
    axes.set_title(text, loc="left", fontsize=10, fontweight="bold", color=INK)


def name_lines(axes: Axes, lines: Mapping[str, tuple[float, str]]) -> None:
    """Write names in a column beside a panel, each at the height of its line's end.

    Where two would be on each other they move apart. Called once the panel's limits are final.

    Args:
        axes: the panel.
        lines: by name: the last value of the line, and its colour.
    """
    figure = axes.figure.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # lays out, so that heights are known
    to_points = 72 / figure.dpi
    low, high = (axes.transAxes.transform((0, end))[1] * to_points for end in (0.0, 1.0))
    height = {
        name: axes.transData.transform((axes.get_xlim()[1], value))[1] * to_points
        for name, (value, _) in lines.items()
    }
    order = sorted(lines, key=lambda name: height[name])
    places: list[float] = []
    for name in order:
        places.append(max(height[name], places[-1] + _LINE if places else low))
    top = high - _LINE / 2  # what stands above the panel moves down, and pushes the others
    for at in reversed(range(len(places))):
        places[at] = min(places[at], top)
        top = places[at] - _LINE
    for name, place in zip(order, places, strict=True):
        weight = "bold" if name.startswith(PRODUCT) else "normal"
        axes.annotate(
            name,
            (1.0, 0.0),
            (6, place - low),
            xycoords="axes fraction",
            textcoords="offset points",
            color=lines[name][1],
            fontsize=9,
            fontweight=weight,
            verticalalignment="center",
            annotation_clip=False,
        )


def colour_of(name: str, names: Sequence[str]) -> str:
    """Return the colour of a product: this server's is the first one in every picture.

    Args:
        name: of the product, or of one of its variants.
        names: of all in the picture.
    """
    if name.startswith(PRODUCT):
        return COLOURS[0]
    others = [each for each in dict.fromkeys(names) if not each.startswith(PRODUCT)]
    is_ours_there = any(each.startswith(PRODUCT) for each in names)
    free = COLOURS[1:] if is_ours_there else COLOURS
    return free[others.index(name) % len(free)]


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
