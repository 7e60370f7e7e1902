"""The picture of a report: rates against latencies, and the latency of a lone caller."""

from collections.abc import Iterator, Mapping, Sequence
from math import inf, log10
from statistics import median

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

from benchmarks.drawing import COLOURS, INK, WIDTH, label, scale_rate_and_latency, svg, tidy, title
from benchmarks.figures import Figures
from benchmarks.result_file import Cell, Results
from benchmarks.tables import seconds, short
from benchmarks.targets import Spec

_LABEL_ROOM, _BAR_ROOM = 4.0, 1.3
"""How many times as long an axis is made, so that labels fit."""
_HEIGHT, _LINE = 140.0, 11.0
"""Points: of what labels are spread over, and of a line of text."""
_SHARES = (0.5, 0.9, 0.99, 0.999)
_LOADS = ("SingleStream", "ClosedLoop")

_Point = tuple[float, float, int]
"""A rate in calls/s, a latency in seconds, and the calls in flight."""


def pictures_of(results: Results) -> dict[str, str]:
    """Draw all pictures of a report.

    Returns:
        SVG files by the end of their name: "" for the first, "-devices" and "-tails" where several
        models were compared. Pictures with nothing on them are left out.
    """
    models = list(dict.fromkeys(sample.model for sample in results.samples if sample.model))
    if not models:
        drawn = {"": draw(results)}
    else:
        figures = Figures(results)
        drawn = {
            "": _draw_models(figures, models),
            "-devices": _draw_devices(figures, models),
            "-tails": _draw_percentiles(figures, models[0]),
        }
    return {name: picture for name, picture in drawn.items() if picture}


def _draw_models(figures: Figures, models: Sequence[str]) -> str:
    """Draw rate against p99: a panel for each model, a curve for each server."""
    curves = {model: _curves_of(figures, model) for model in models}
    curves = {model: found for model, found in curves.items() if found}
    if not curves:
        return ""
    colours = _colours([spec for found in curves.values() for spec in found])
    figure = Figure(figsize=(WIDTH, 3.2 * len(curves)), layout="constrained")
    panels = figure.subplots(len(curves), 1, squeeze=False)[:, 0]
    for axes, (model, found) in zip(panels, curves.items(), strict=True):
        _draw_curves(axes, found, colours)
        title(axes, f"{model}: rate and p99 latency, by callers")
        axes.set_xlim(right=axes.get_xlim()[1] * _LABEL_ROOM)
        axes.set_ylim(top=axes.get_ylim()[1] * _LABEL_ROOM)
    said = "; ".join(f"{model}: {_said(found, {})}" for model, found in curves.items())
    return svg(figure, said)


def _curves_of(figures: Figures, model: str) -> dict[Spec, list[_Point]]:
    """Return the points of each server that the generator calls, on the CPU in fp32."""
    curves: dict[Spec, list[_Point]] = {}
    for cell in figures.rounds:
        plain = Spec(target=cell.spec.target)
        if cell.model == model and cell.spec == plain and cell.batch == 1:
            valid = figures.valid(cell)
            rate = median(sample.images_per_s for sample in valid)
            p99_s = median(sample.latency.quantile(0.99) for sample in valid)
            curves.setdefault(cell.spec, []).append((rate, p99_s, cell.callers))
    return {spec: sorted(points, key=lambda each: each[2]) for spec, points in curves.items()}


def _draw_devices(figures: Figures, models: Sequence[str]) -> str:
    """Draw this server's highest rate by device and precision; what is not measured says so."""
    kinds = [("cpu", "fp32"), ("cpu", "int8"), ("cuda", "fp32")]
    figure = Figure(figsize=(WIDTH, 1.3 * len(models) + 0.4), layout="constrained")
    panels = figure.subplots(len(models), 1, squeeze=False)[:, 0]
    words = []
    for axes, model in zip(panels, models, strict=True):
        for place, (device, precision) in enumerate(kinds):
            spec = Spec(target="h2-infer", device=device, precision=precision)
            cells = [c for c in figures.rounds if (c.spec, c.model) == (spec, model)]
            values = map(figures.of, cells)
            rates = [value for value in values if value is not None]
            rate, colour = max(rates, default=0.0), COLOURS[place]
            axes.barh(place, rate, color=colour, height=0.7)
            text = f"{short(rate)}/s" if rate else "not measured"
            label(axes, text, (rate, place), (4, -3), colour if rate else INK, 9)
            words.append(f"{model}, {device} {precision}: {text}")
        axes.set_yticks(range(len(kinds)), [" ".join(kind) for kind in kinds])
        axes.invert_yaxis()
        axes.set_xlim(left=0, right=max(1.0, axes.get_xlim()[1]) * _BAR_ROOM)
        axes.set_xticks([])
        title(axes, f"{model}: rows/s, at the best number of callers")
        tidy(axes)
        axes.grid(visible=False)
    return svg(figure, "; ".join(words))


def _draw_percentiles(figures: Figures, model: str) -> str:
    """Draw the latencies of a lone caller of one model, by percentile."""
    alone = {
        cell.spec: _tail(figures, cell)
        for cell in figures.rounds
        if (cell.model, cell.callers, cell.batch) == (model, 1, 1)
        and cell.spec == Spec(target=cell.spec.target)
    }
    alone = {spec: values for spec, values in alone.items() if values}
    if not alone:
        return ""
    figure = Figure(figsize=(WIDTH, 3.8), layout="constrained")
    axes = figure.add_subplot()
    _draw_tails(axes, alone, _colours(list(alone)))
    title(axes, f"{model}: latency of a lone caller")
    return svg(figure, _said({}, alone))


def draw(results: Results) -> str:
    """Draw closed loops and lone callers.

    Args:
        results: the results; cells without a figure are left out.

    Returns:
        The SVG file; empty where there is neither.
    """
    figures = Figures(results)
    curves = dict(_curves(figures))
    alone = {cell.spec: _tail(figures, cell) for cell in figures.rounds if _is_alone(cell)}
    alone = {spec: values for spec, values in alone.items() if values}
    panels = [each for each in (curves, alone) if each]
    if not panels:
        return ""
    figure = Figure(figsize=(WIDTH, 3.4 * len(panels)), layout="constrained")
    colours = _colours([*curves, *alone])
    rows = iter(range(1, len(panels) + 1))
    if curves:
        _draw_curves(figure.add_subplot(len(panels), 1, next(rows)), curves, colours)
    if alone:
        _draw_tails(figure.add_subplot(len(panels), 1, next(rows)), alone, colours)
    return svg(figure, _said(curves, alone))


def _said(curves: Mapping[Spec, Sequence[_Point]], alone: Mapping[Spec, Sequence[float]]) -> str:
    """Return in words what the picture shows."""
    words = [
        f"{spec}, {in_flight} in flight: {short(rate)} answers/s, p99 {seconds(latency)}"
        for spec, points in curves.items()
        for rate, latency, in_flight in points
    ]
    words += [
        f"{spec}, one caller: "
        + ", ".join(f"p{100 * q:g} {seconds(v)}" for q, v in zip(_SHARES, values, strict=False))
        for spec, values in alone.items()
    ]
    return "; ".join(words)


def _is_alone(cell: Cell) -> bool:
    return cell.scenario == "SingleStream" and not cell.overload


def _colours(specs: Sequence[Spec]) -> Mapping[Spec, str]:
    unique = dict.fromkeys(specs)
    return {spec: COLOURS[at % len(COLOURS)] for at, spec in enumerate(unique)}


def _curves(figures: Figures) -> Iterator[tuple[Spec, list[_Point]]]:
    """Yield each target's points, by the number of callers."""
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


def _tail(figures: Figures, cell: Cell) -> list[float]:
    """Return the latency of a cell at each of `_SHARES`, in seconds."""
    found = [figures.latency_s(cell, share) for share in _SHARES]
    return [each for each in found if each is not None]


def _draw_curves(
    axes: Axes, curves: Mapping[Spec, Sequence[_Point]], colours: Mapping[Spec, str]
) -> None:
    for spec, points in curves.items():
        rates, latencies = [point[0] for point in points], [point[1] for point in points]
        axes.plot(rates, latencies, "o-", color=colours[spec], linewidth=1.6, markersize=4)
        for rate, latency, in_flight in points:
            label(axes, str(in_flight), (rate, latency), (4, -9), colours[spec], 7.5)
    ends = {spec: points[-1] for spec, points in curves.items()}
    raised = _raised({spec: [each[1] for each in points] for spec, points in curves.items()})
    for spec, (rate, latency, _) in ends.items():
        label(axes, str(spec), (rate, latency), (-10, 7 + raised[spec]), colours[spec], 9, "bold")
    axes.set(xlabel="answers/s", ylabel="p99 latency")
    axes.margins(x=0.18, y=0.16)
    title(axes, "Rate and p99 latency, by calls in flight")
    scale_rate_and_latency(axes)
    tidy(axes)


def _draw_tails(
    axes: Axes, tails: Mapping[Spec, Sequence[float]], colours: Mapping[Spec, str]
) -> None:
    places = range(len(_SHARES))
    for spec, values in tails.items():
        axes.plot(
            places[: len(values)], values, "o-", color=colours[spec], linewidth=1.6, markersize=4
        )
    raised = _raised(tails)
    for spec, values in tails.items():
        at = len(values) - 1, values[-1]
        label(axes, str(spec), at, (7, -3 + raised[spec]), colours[spec], 9, "bold")
    axes.set(yscale="log", ylabel="latency")
    axes.set_xticks(places, [f"p{100 * share:g}" for share in _SHARES])
    axes.margins(x=0.1, y=0.12)
    axes.set_xlim(right=places[-1] + 1.1)
    title(axes, "Latency of a lone caller")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))
    tidy(axes)


def _raised(curves: Mapping[Spec, Sequence[float]]) -> Mapping[Spec, float]:
    """Return how many points each curve's label is raised, so that none is on another.

    Args:
        curves: the heights of each curve, on a logarithmic axis; the label is at the last one.
    """
    every = [log10(value) for values in curves.values() for value in values]
    per_decade = _HEIGHT / (max(every) - min(every) or 1.0)
    heights = {spec: log10(values[-1]) * per_decade for spec, values in curves.items()}
    raised: dict[Spec, float] = {}
    top = -inf
    for spec in sorted(heights, key=lambda each: heights[each]):
        top = max(heights[spec], top + _LINE)
        raised[spec] = top - heights[spec]
    return raised
