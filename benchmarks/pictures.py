"""The pictures of a report: comparisons, devices, batches, and rates against latencies."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from statistics import median

from matplotlib.figure import Figure

from benchmarks.drawing import (
    COLOURS,
    WIDTH,
    colour_of,
    label,
    name_lines,
    svg,
    tidy,
    title,
    write_numbers,
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
    """Whether it is a product's other precision, device or protocol: it is dashed."""


@dataclass(frozen=True, slots=True)
class _Panel:
    """Lines over one another, on a logarithmic upright axis."""

    title: str
    lines: Sequence[_Line]
    said: Sequence[str]
    """What it shows, in words, for those who can't see it."""
    text: Callable[[float], str]
    """Writes a number of the upright axis."""
    along: str = ""
    """What the other axis has."""
    text_along: Callable[[float], str] = short
    """Writes a number of the other axis, if that has no ticks of its own."""
    ticks: Sequence[str] = ()
    """The places 0, 1, ... of the other axis, which is logarithmic without them."""


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
    panels, along = [], "connections × calls in flight on each"
    for protocol in ("gRPC", "JSON"):
        (shapes, lines), name = _rates(figures, model, protocol), protocol_said(protocol)
        said = [
            f"{name}, {each.name}, {shapes[int(at)]}: {short(value)} calls/s"
            for each in lines
            for at, value in each.points
        ]
        panels.append(_Panel(f"{model}, {name}: calls/s", lines, said, short, along, ticks=shapes))
    loads = _loads(figures, model)
    said = [
        f"{each.name}, {short(rate)} calls/s offered: p99 {seconds(value)}"
        for each in loads
        for rate, value in each.points
    ]
    heading = f"{model}: p99 latency by offered load"
    panels.append(_Panel(heading, loads, said, seconds, "calls/s offered"))
    return _draw_panels(panels)


def _draw_panels(panels: Sequence[_Panel]) -> str:
    """Draw panels one below the other, a colour for each product; those without lines are none."""
    panels = [panel for panel in panels if panel.lines]
    if not panels:
        return ""
    names = [each.name for panel in panels for each in panel.lines]
    figure = Figure(figsize=(WIDTH, _PANEL_IN * len(panels)), layout="constrained")
    every = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axes, panel in zip(every, panels, strict=True):
        for each in panel.lines:
            style, colour = "o--" if each.is_variant else "o-", _colour(each.name, names)
            points = zip(*each.points, strict=True)
            axes.plot(*points, style, color=colour, linewidth=1.6, markersize=4)
        axes.set(yscale="log", xlabel=panel.along)
        title(axes, panel.title)
        axes.margins(x=0.08, y=0.1)
        if panel.ticks:
            axes.set_xticks(range(len(panel.ticks)), panel.ticks)
        else:
            axes.set(xscale="log")
            write_numbers(axes.xaxis, panel.text_along)
        write_numbers(axes.yaxis, panel.text)
        tidy(axes)
    for axes, panel in zip(every, panels, strict=True):  # once all heights are final
        ends = {each.name: (each.points[-1][1], _colour(each.name, names)) for each in panel.lines}
        name_lines(axes, ends)
    return svg(figure, "; ".join(said for panel in panels for said in panel.said))


def _colour(name: str, names: Sequence[str]) -> str:
    """Return the colour of a product: the same in every protocol."""
    return colour_of(_product(name), [_product(each) for each in names])


def _product(name: str) -> str:
    return name.partition(",")[0]


def _rates(figures: Figures, model: str, protocol: str) -> tuple[list[str], list[_Line]]:
    """Return the shapes that were called, and each server's rate by their place."""
    cells = [
        cell
        for cell in figures.rounds
        if (cell.model, cell.scenario, cell.batch, cell.spec.client) == (model, "ClosedLoop", 1, "")
        and protocol_of(cell.spec.target) == protocol
    ]
    cells.sort(key=lambda cell: (cell.callers, cell.connections))
    shapes = list(dict.fromkeys(map(shape_of, cells)))
    points: dict[Spec, list[tuple[float, float]]] = {}
    for cell in cells:
        point = float(shapes.index(shape_of(cell))), figures.of(cell) or 0.0
        points.setdefault(cell.spec, []).append(point)
    order = [spec for spec in figures.specs if spec in points]
    return shapes, [_line(name_of(spec), points[spec]) for spec in order]


def _loads(figures: Figures, model: str) -> list[_Line]:
    """Return each server's p99 by the rate that was offered, in the protocol of its name."""
    points: dict[Spec, list[tuple[float, float]]] = {}
    for cell, rounds in figures.rounds.items():
        if (cell.model, cell.scenario) != (model, "Load"):
            continue
        if len(rounds) == 1 < len(figures.samples[cell]):
            continue  # the others are void: one round is no median
        p99_s = figures.latency_s(cell, 0.99)
        if p99_s is not None:
            offered = median(sample.offered_per_s or 0.0 for sample in figures.valid(cell))
            points.setdefault(cell.spec, []).append((offered, p99_s))
    lines = []
    for spec, found in points.items():
        name = f"{name_of(spec)}, {protocol_of(spec.target)}"
        lines.append(_Line(name, sorted(found), spec.target == OURS["JSON"]))
    return lines


def _line(name: str, points: Sequence[tuple[float, float]]) -> _Line:
    """Return a line; dashed for this server in other than its usual settings."""
    return _Line(name, points, is_variant=name.startswith(f"{PRODUCT} "))


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
    """Draw rate, p50 and p99 of Offline by rows a call, a line for each target and setting."""
    cells = [cell for cell in figures.rounds if cell.scenario == "Offline"]
    if len({cell.batch for cell in cells}) < _LEAST_BATCHES:
        return ""
    panels = []
    for what, text, lines in (
        ("rows/s", short, _by_batch(cells, figures.of)),
        ("p50 latency of a call", seconds,
         _by_batch(cells, lambda cell: figures.latency_s(cell, 0.5))),
        ("p99 latency of a call", seconds,
         _by_batch(cells, lambda cell: figures.latency_s(cell, 0.99))),
    ):  # fmt: skip
        said = [
            f"{each.name}, {rows:g} rows a call: {what} {text(value)}"
            for each in lines
            for rows, value in each.points
        ]
        panels.append(_Panel(what, lines, said, text, "rows a call", "{:g}".format))
    return _draw_panels(panels)


def _by_batch(cells: Sequence[Cell], of: Callable[[Cell], float | None]) -> list[_Line]:
    points: dict[Spec, list[tuple[float, float]]] = {}
    for cell in cells:
        value = of(cell)
        if value is not None:
            points.setdefault(cell.spec, []).append((float(cell.batch), value))
    named = _unlike(list(points))
    return [_line(named[spec], sorted(found)) for spec, found in points.items()]


def _unlike(specs: Sequence[Spec]) -> dict[Spec, str]:
    """Return a name for each target; with the target's own where products are not enough.

    Where all are this server called alike, its settings alone, so that each has a colour.
    """
    if len(specs) > 1 and {spec.target for spec in specs} == {OURS["gRPC"]}:
        settings = (str(replace(spec, target="")) for spec in specs)
        return {spec: each or spec.precision for spec, each in zip(specs, settings, strict=True)}
    names = [name_of(spec) for spec in specs]
    return {
        spec: name if names.count(name) == 1 else f"{name} ({spec.target})"
        for spec, name in zip(specs, names, strict=True)
    }


def _draw_targets(figures: Figures) -> str:
    """Draw closed loops and lone callers; empty where there is neither."""
    named = _unlike(figures.specs)
    curves = {named[spec]: found for spec, found in _curves(figures)}
    alone = {named[spec]: found for spec in figures.specs if (found := _tail(figures, spec))}
    most = max((found[-1][2] for found in curves.values()), default=0)
    loops = [_line(name, [each[:2] for each in found]) for name, found in curves.items()]
    of_loops = [
        f"{name}, {in_flight} in flight: {short(rate)} answers/s, p99 {seconds(latency)}"
        for name, points in curves.items()
        for rate, latency, in_flight in points
    ]
    lone = [_line(name, list(enumerate(found))) for name, found in alone.items()]
    shares = [f"p{100 * share:g}" for share in _SHARES]
    of_lone = [
        f"{name}, one caller: "
        + ", ".join(f"{q} {seconds(v)}" for q, v in zip(shares, values, strict=False))
        for name, values in alone.items()
    ]
    heading = f"p99 latency by rate, to {most} calls in flight"
    return _draw_panels(
        [
            _Panel(heading, loops, of_loops, seconds, "answers/s"),
            _Panel("Latency of a lone caller", lone, of_lone, seconds, ticks=shares),
        ]
    )


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
