"""The picture of a search: rate against p99, with the Pareto front and the chosen settings."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmarks.drawing import (
    COLOURS,
    INK,
    WIDTH,
    label,
    scale_rate_and_latency,
    svg,
    tidy,
    title,
)
from benchmarks.tables import seconds, short
from benchmarks.tuning.search import Trial, TuningCell, cells_of, front

_CHOSEN, _FRONT, _USUAL = COLOURS[1], COLOURS[0], COLOURS[2]


def draw(trials: Sequence[Trial], chosen: TuningCell | None, name: str) -> str:
    """Draw every cell without errors, and return the SVG file.

    The front is that of the last stage: cells of other stages were measured at other times.
    """
    last = max(trial.stage for trial in trials)
    cells = [cell for cell in cells_of(trials) if not cell.num_errors]
    finals = cells_of([trial for trial in trials if trial.stage == last])
    best = front(finals)
    figure = Figure(figsize=(WIDTH, 4.2), layout="constrained")
    axes = figure.add_subplot()
    others = [cell for cell in cells if not cell.candidate.is_default]
    usual = [cell for cell in finals if cell.candidate.is_default and not cell.num_errors]
    usual.sort(key=lambda cell: cell.callers)
    for group, colour, style, alpha in (
        (others, INK, "o", 0.25),
        (usual, _USUAL, "s-", 1.0),
        (best, _FRONT, "o-", 1.0),
    ):
        points = [each.rows_per_s for each in group], [each.p99_s for each in group]
        axes.plot(*points, style, color=colour, alpha=alpha, markersize=4, linewidth=1.4)
    if usual:
        end = usual[-1].rows_per_s, usual[-1].p99_s
        label(axes, "defaults", end, (6, -10), _USUAL, 9, "bold")
    if best:
        label(
            axes, "Pareto front", (best[0].rows_per_s, best[0].p99_s), (6, -12), _FRONT, 9, "bold"
        )
    if chosen:
        at = chosen.rows_per_s, chosen.p99_s
        axes.plot(*at, "*", color=_CHOSEN, markersize=13)
        label(axes, "chosen", at, (-34, 8), _CHOSEN, 9, "bold")
    axes.set(xlabel="rows/s", ylabel="p99 latency")
    axes.margins(x=0.15, y=0.12)
    title(axes, f"{name}: every setting and number of callers")
    scale_rate_and_latency(axes)
    tidy(axes)
    words = "; ".join(
        f"{cell.candidate}, {cell.callers} callers: {short(cell.rows_per_s)} rows/s, p99 "
        f"{seconds(cell.p99_s)}"
        for cell in best
    )
    return svg(figure, f"Pareto front: {words}")
