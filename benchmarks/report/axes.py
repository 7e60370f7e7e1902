"""How the pictures look: colours, axes, labels."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.colors import to_hex, to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter, NullLocator

from benchmarks.report.table import short
from benchmarks.targets.target import Spec
from training.report.drawing import MUTED, WIDTH, tidy

COLOURS = {
    "h2": "#2166ac", "native": "#4393c3", "bare": "#67a9cf", "grpcio": "#1b8a5a",
    "grpcio-stream": "#a6761d", "h2-stream": "#8073ac", "h2-infer": "#35978f",
    "h2-infer-stream": "#01665e", "h2-tls": "#bf812d", "h2-token": "#de77ae",
    "http-json": "#d6604d", "http-binary": "#f4a582", "http-picture": "#92c5de",
    "plain": "#e08214",
    "keras": "#b2182b", "tf-function": "#ef8a62", "engine": "#5e3c99", "classifier": "#c51b7d",
    "engine-bound": "#c51b7d", "engine-locked": "#e08214", "engine-graphs": "#1b7837",
    "engine-tf32": "#2166ac", "engine-fp16": "#b2182b", "h2-locked": "#bf812d",
    "h2-graphs": "#35978f", "raw": "#4d4d4d", "classifier-async": "#35978f",
    "client-grpcio": "#1b8a5a", "client-h2": "#2166ac", "client-triton": "#b2182b",
    "client-async-grpcio": "#a6761d", "client-async-h2": "#8073ac",
    "echo": "#4d4d4d", "echo-grpcio": "#878787", "null": "#b0b7c0",
}  # fmt: skip
"""By target; "native" is what h2 replaced, in results of that time."""
_OTHERS = ("#b2182b", "#1b7837", "#542788", "#b35806")
"""For targets by address, in the order of their appearance."""
_given: dict[str, str] = {}
_LABEL = 0.06  # height of a label, as a share of the axes
Line = tuple[Sequence[float], Sequence[float]]
"""Its x and y values."""


def style(spec: Spec) -> dict[str, Any]:
    """Return a target's colour and dash: int8 is lighter and dashed, CUDA dotted."""
    colour = COLOURS.get(spec.target) or _given.setdefault(
        spec.target, _OTHERS[len(_given) % len(_OTHERS)]
    )
    if spec.precision == "int8":
        red, green, blue = (0.4 + 0.6 * part for part in to_rgb(colour))
        return {"color": to_hex((red, green, blue)), "linestyle": "--"}
    return {"color": colour, "linestyle": ":" if spec.device == "cuda" else "-"}


def new_axes(x: str, y: str, log: str = "xy", height: float = 4.2) -> tuple[Figure, Axes]:
    """Make a figure of one plot; the axes in `log` are logarithmic, with labels at 1, 2 and 5."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots()
    axes.set_xlabel(x, color=MUTED)
    axes.set_ylabel(y, color=MUTED)
    tidy(axes)
    axes.set(**{f"{name}scale": "log" for name in log})
    for axis in (axes.xaxis if name == "x" else axes.yaxis for name in log):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=20))
        axis.set_minor_locator(NullLocator())
        axis.set_minor_formatter(NullFormatter())
        axis.set_major_formatter(thousands)
    return figure, axes


def draw_lines(axes: Axes, lines: Mapping[Spec, Line], marker: str = "o") -> None:
    """Draw a line for each target and name it at its end; the scales must be set before."""
    for spec, (x, y) in lines.items():
        axes.plot(x, y, marker=marker, markersize=4, **style(spec))
    _thin(axes)
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()
    to_share = axes.transData + axes.transAxes.inverted()
    ends = {spec: (x[-1], y[-1]) for spec, (x, y) in lines.items()}
    places = sorted((to_share.transform(end)[1], spec) for spec, end in ends.items())
    ceiling = 1.0
    for left, (share, spec) in reversed(list(enumerate(places))):
        # As high as the line ends, below the label above, and with room for those below.
        ceiling = max(min(share, ceiling), min(_LABEL * left, ceiling))
        axes.annotate(str(spec), (1.01, ceiling), xycoords="axes fraction", va="center",
                      color=style(spec)["color"], annotation_clip=False)  # fmt: skip
        ceiling -= _LABEL


def _thin(axes: Axes) -> None:
    """Label decades only, where there are many."""
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        is_ours = isinstance(axis.get_major_locator(), LogLocator)
        if is_ours and axis.get_scale() == "log" and high > 3_000 * low:
            axis.set_major_locator(LogLocator(subs=(1,), numticks=20))


thousands = FuncFormatter(lambda value, _: short(value))
milliseconds = FuncFormatter(lambda ms, _: f"{ms:g} ms" if ms >= 1 else f"{ms * 1e3:g} µs")
"""How axes of rates (1/s) and of times (ms) are labelled."""
