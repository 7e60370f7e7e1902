"""The pictures of a report: comparisons, devices, batches, and rates against latencies."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.drawing import (
    COLOURS,
    WIDTH,
    colour_of,
    label,
    name_lines,
    scale_rate_and_latency,
    svg,
    tidy,
    title,
)
from benchmarks.figures import Figures
from benchmarks.result_file import Cell, Results
from benchmarks.tables import (
    is_comparison,
    name_of,
    protocol_said,
    seconds,
    shape_of,
    short,
)
from benchmarks.targets import OURS, PRODUCT, Spec, protocol_of

_SHARES = (0.5, 0.9, 0.99, 0.999)
_LOADS = ("SingleStream", "ClosedLoop")
_BAR_ROOM = 1.3
"""How many times as long an axis of bars is made, so that their figures fit."""
_LEAST_BATCHES = 3
"""The fewest numbers of rows a call that make a picture."""
_PANEL_IN = 2.9
"""Inches: the height of a panel."""


@dataclass(frozen=True, slots=True)
class _Line:
    """A server's points in a panel."""

    name: str
    points: Sequence[tuple[float, float]]
    is_variant: bool = False
    """Whether it is a product's other precision or device."""


def pictures_of(results: Results) -> dict[str, str]:
    """Draw all pictures of a report.

    Returns:
        SVG files by the end of their name, the first one's is empty. Pictures with nothing on them
        are left out.
    """
    figures = Figures(results)
    if is_comparison(results):
        models = list(dict.fromkeys(cell.model for cell in figures.samples))
        drawn = {
            "": _draw_comparison(figures, models[0]),
            "-devices": _draw_devices(figures, models),
        }
    else:
        drawn = {"": _draw_targets(figures), "-batches": _draw_batches(figures)}
    return {name: picture for name, picture in drawn.items() if picture}


def _draw_comparison(figures: Figures, model: str) -> str:
    """Draw a panel of gRPC, one of JSON, and one of latency by offered load."""
    panels = [(protocol, *_rates(figures, model, protocol)) for protocol in ("gRPC", "JSON")]
    panels = [panel for panel in panels if panel[2]]
    loads = _loads(figures, model)
    number = len(panels) + bool(loads)
    if not number:
        return ""
    names = [each.name for _, _, lines in panels for each in lines] + [each.name for each in loads]
    figure = Figure(figsize=(WIDTH, _PANEL_IN * number), layout="constrained")
    every = figure.subplots(number, 1, squeeze=False)[:, 0]
    done: dict[Axes, Sequence[_Line]] = {}
    said = []
    for axes, (protocol, shapes, lines) in zip(every, panels, strict=False):
        _draw_lines(axes, lines, names)
        axes.set_xticks(range(len(shapes)), shapes)
        axes.set(yscale="log", xlabel="connections × calls in flight on each")
        axes.margins(x=0.06, y=0.1)
        title(axes, f"{model}, {protocol_said(protocol)}: calls/s")
        _scale(axes, short)
        done[axes] = lines
        said += [
            f"{protocol_said(protocol)}, {each.name}, {shapes[int(at)]}: {short(value)} calls/s"
            for each in lines
            for at, value in each.points
        ]
    if loads:
        axes = every[-1]
        _draw_lines(axes, loads, names)
        axes.set(xscale="log", yscale="log", xlabel="calls/s offered")
        title(axes, f"{model}: p99 latency by offered load")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        _scale(axes, seconds)
        done[axes] = loads
        said += [
            f"{each.name}, {short(rate)} calls/s offered: p99 {seconds(value)}"
            for each in loads
            for rate, value in each.points
        ]
    _name(done, names)
    return svg(figure, "; ".join(said))


def _rates(figures: Figures, model: str, protocol: str) -> tuple[list[str], list[_Line]]:
    """Return the shapes that were called, and each server's rate by their place."""
    cells = [
        cell
        for cell in figures.rounds
        if (cell.model, cell.scenario, cell.batch, cell.spec.client) == (model, "ClosedLoop", 1, "")
        and protocol_of(cell.spec.target) == protocol
    ]
    kinds = sorted({_kind(cell) for cell in cells})
    shapes = {kind: shape_of(next(c for c in cells if _kind(c) == kind)) for kind in kinds}
    points: dict[Spec, list[tuple[float, float]]] = {}
    for cell in cells:
        point = float(kinds.index(_kind(cell))), figures.of(cell) or 0.0
        points.setdefault(cell.spec, []).append(point)
    return list(shapes.values()), [_line(spec, found) for spec, found in points.items()]


def _kind(cell: Cell) -> tuple[int, int]:
    return cell.callers, cell.connections


def _loads(figures: Figures, model: str) -> list[_Line]:
    """Return each server's p99 by the rate that was offered, in the protocol of its name."""
    points: dict[Spec, list[tuple[float, float]]] = {}
    for cell in figures.rounds:
        p99_s = figures.latency_s(cell, 0.99)
        if (cell.model, cell.scenario) == (model, "Load") and p99_s is not None:
            offered = median(sample.offered_per_s or 0.0 for sample in figures.valid(cell))
            points.setdefault(cell.spec, []).append((offered, p99_s))
    lines = []
    for spec, found in points.items():
        name = f"{name_of(spec)}, {protocol_of(spec.target)}"
        lines.append(_Line(name, sorted(found), spec.target == OURS["JSON"]))
    return lines


def _line(spec: Spec, points: Sequence[tuple[float, float]]) -> _Line:
    return _Line(name_of(spec), sorted(points), spec != Spec(target=spec.target))


def _draw_lines(axes: Axes, lines: Sequence[_Line], names: Sequence[str]) -> None:
    for each in lines:
        style = "o--" if each.is_variant else "o-"
        colour = _colour(each.name, names)
        axes.plot(*zip(*each.points, strict=True), style, color=colour, linewidth=1.6, markersize=4)


def _colour(name: str, names: Sequence[str]) -> str:
    """Return the colour of a product, whatever its protocol."""
    return colour_of(_product(name), [_product(each) for each in names])


def _product(name: str) -> str:
    return name.partition(",")[0]


def _scale(axes: Axes, text: Callable[[float], str]) -> None:
    """Write numbers that people read on the upright axis."""
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: text(value)))
    tidy(axes)


def _name(panels: Mapping[Axes, Sequence[_Line]], names: Sequence[str]) -> None:
    """Write each line's name beside it, once all panels are complete."""
    for axes, lines in panels.items():
        ends = {each.name: (each.points[-1][1], _colour(each.name, names)) for each in lines}
        name_lines(axes, ends)


def _draw_devices(figures: Figures, models: Sequence[str]) -> str:
    """Draw this server's best rate over gRPC by device and precision, where it was measured."""
    bars: dict[str, dict[Spec, float]] = {}
    for cell in figures.rounds:
        if (cell.scenario, cell.spec.target, cell.spec.client) == ("ClosedLoop", OURS["gRPC"], ""):
            found = bars.setdefault(cell.model, {})
            found[cell.spec] = max(found.get(cell.spec, 0.0), figures.of(cell) or 0.0)
    bars = {model: bars[model] for model in models if len(bars.get(model, {})) > 1}
    if not bars:
        return ""
    heights = [len(found) + 1.2 for found in bars.values()]
    figure = Figure(figsize=(WIDTH, 0.32 * sum(heights) + 0.3), layout="constrained")
    panels = figure.subplots(len(bars), 1, squeeze=False, height_ratios=heights)[:, 0]
    words = []
    for axes, (model, found) in zip(panels, bars.items(), strict=True):
        for place, (spec, rate) in enumerate(found.items()):
            name, colour = f"{spec.device} {spec.precision}", COLOURS[place % len(COLOURS)]
            axes.barh(place, rate, color=colour, height=0.7)
            label(axes, f"{short(rate)}/s", (rate, place), (4, -3), colour, 9)
            words.append(f"{model}, {name}: {short(rate)} rows/s")
        names = [f"{spec.device} {spec.precision}" for spec in found]
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(left=0, right=axes.get_xlim()[1] * _BAR_ROOM)
        axes.set_xticks([])
        title(axes, f"{model}: rows/s, at the best number of callers")
        tidy(axes)
        axes.grid(visible=False)
    return svg(figure, "; ".join(words))


def _draw_batches(figures: Figures) -> str:
    """Draw the rate and the p99 of Offline by rows a call, a line for each target and setting."""
    cells = [cell for cell in figures.rounds if cell.scenario == "Offline"]
    if len({cell.batch for cell in cells}) < _LEAST_BATCHES:
        return ""
    rates, tails = (
        _by_batch(cells, of) for of in (figures.of, lambda cell: figures.latency_s(cell, 0.99))
    )
    panels = [("rows/s", short, rates), ("p99 latency of a call", seconds, tails)]
    panels = [panel for panel in panels if panel[2]]
    names = [each.name for each in rates]
    figure = Figure(figsize=(WIDTH, _PANEL_IN * len(panels)), layout="constrained")
    said = []
    done: dict[Axes, Sequence[_Line]] = {}
    every = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, (what, text, lines) in zip(every, panels, strict=True):
        _draw_lines(axes, lines, names)
        axes.set(xscale="log", yscale="log", xlabel="rows a call")
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        title(axes, what)
        _scale(axes, text)
        done[axes] = lines
        said += [
            f"{each.name}, {rows:g} rows a call: {what} {text(value)}"
            for each in lines
            for rows, value in each.points
        ]
    _name(done, names)
    return svg(figure, "; ".join(said))


def _by_batch(cells: Sequence[Cell], of: Callable[[Cell], float | None]) -> list[_Line]:
    points: dict[Spec, list[tuple[float, float]]] = {}
    for cell in cells:
        value = of(cell)
        if value is not None:
            points.setdefault(cell.spec, []).append((float(cell.batch), value))
    named = _unlike(list(points))
    return [_line_of(named[spec], sorted(found)) for spec, found in points.items()]


def _unlike(specs: Sequence[Spec]) -> dict[Spec, str]:
    """Return a name for each target; with the target's own where products are not enough."""
    names = [name_of(spec) for spec in specs]
    return {
        spec: name if names.count(name) == 1 else f"{name} ({spec.target})"
        for spec, name in zip(specs, names, strict=True)
    }


def _line_of(name: str, points: Sequence[tuple[float, float]]) -> _Line:
    """Return a line; dashed for this server in other than its usual settings."""
    return _Line(name, points, is_variant=name.startswith(f"{PRODUCT} "))


def _draw_targets(figures: Figures) -> str:
    """Draw closed loops and lone callers; empty where there is neither."""
    named = _unlike(figures.specs)
    curves = {named[spec]: found for spec, found in _curves(figures)}
    alone = {named[spec]: found for spec in figures.specs if (found := _tail(figures, spec))}
    panels = [each for each in (curves, alone) if each]
    if not panels:
        return ""
    names = list(dict.fromkeys([*curves, *alone]))
    figure = Figure(figsize=(WIDTH, _PANEL_IN * len(panels)), layout="constrained")
    every = iter(figure.subplots(len(panels), 1, squeeze=False)[:, 0])
    done: dict[Axes, Sequence[_Line]] = {}
    if curves:
        axes = next(every)
        lines = [_line_of(name, [each[:2] for each in found]) for name, found in curves.items()]
        most = max(found[-1][2] for found in curves.values())
        _draw_lines(axes, lines, names)
        axes.set(xlabel="answers/s")
        axes.margins(x=0.1, y=0.12)
        title(axes, f"p99 latency by rate, to {most} calls in flight")
        scale_rate_and_latency(axes)
        _scale(axes, seconds)
        done[axes] = lines
    if alone:
        axes = next(every)
        lines = [_line_of(name, list(enumerate(found))) for name, found in alone.items()]
        _draw_lines(axes, lines, names)
        axes.set(yscale="log")
        axes.set_xticks(range(len(_SHARES)), [f"p{100 * share:g}" for share in _SHARES])
        title(axes, "Latency of a lone caller")
        _scale(axes, seconds)
        done[axes] = lines
    _name(done, names)
    return svg(figure, _said(curves, alone))


def _said(
    curves: Mapping[str, Sequence[tuple[float, float, int]]], alone: Mapping[str, Sequence[float]]
) -> str:
    """Return in words what the picture shows."""
    words = [
        f"{name}, {in_flight} in flight: {short(rate)} answers/s, p99 {seconds(latency)}"
        for name, points in curves.items()
        for rate, latency, in_flight in points
    ]
    words += [
        f"{name}, one caller: "
        + ", ".join(f"p{100 * q:g} {seconds(v)}" for q, v in zip(_SHARES, values, strict=False))
        for name, values in alone.items()
    ]
    return "; ".join(words)


def _curves(figures: Figures) -> Iterator[tuple[Spec, list[tuple[float, float, int]]]]:
    """Yield each target's rates, p99s and calls in flight, by the last."""
    for spec in figures.specs:
        points = []
        for cell in figures.rounds:
            if cell.spec == spec and cell.scenario in _LOADS and not cell.overload:
                valid = figures.valid(cell)
                rate = median(sample.images_per_s for sample in valid)
                p99_s = median(sample.latency.quantile(0.99) for sample in valid)
                points.append((rate, p99_s, cell.callers))
        if points:
            yield spec, sorted(points, key=lambda point: point[2])


def _tail(figures: Figures, spec: Spec) -> list[float]:
    """Return the latencies of a lone caller at each of `_SHARES`, in seconds."""
    cell = Cell(spec=spec, scenario="SingleStream")
    if cell not in figures.rounds:
        return []
    found = [figures.latency_s(cell, share) for share in _SHARES]
    return [each for each in found if each is not None]
