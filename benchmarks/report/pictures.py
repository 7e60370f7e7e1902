"""The pictures: one function a figure; a target has one colour throughout, int8 is dashed."""

from collections.abc import Iterable
from statistics import median

import numpy as np

from benchmarks.report.axes import Line, draw_lines, milliseconds, new_axes, style
from benchmarks.report.figures import Figures
from benchmarks.report.table import seconds, short
from benchmarks.run.histogram import Histogram
from benchmarks.targets.target import Spec
from training.report.drawing import INK, draw
from training.report.page import Picture

_QUANTILES = 1 - 10 ** -np.linspace(0, 4, 200)
_NINES = {0.5: "50", 0.9: "90", 0.99: "99", 0.999: "99.9", 0.9999: "99.99"}
_BUCKETS = [str(2**power) for power in range(8)]


def draw_all(figures: Figures) -> dict[str, Picture]:
    """Draw every picture that the results have something for."""
    makers = {"knee": knee, "server": server, "latency": latency, "batches": batches,
              "formed": formed}  # fmt: skip
    return {name: picture for name, make in makers.items() if (picture := make(figures))}


def knee(figures: Figures) -> Picture | None:
    """Throughput against latency in closed loops of more and more callers."""
    points: dict[Spec, list[tuple[int, float, float]]] = {}
    for cell in figures.rounds:
        if cell.scenario == "ClosedLoop" and cell.spec.target != "null":
            p99_s = median(sample.latency.quantile(0.99) for sample in figures.valid(cell))
            point = (cell.callers, figures.of(cell) or 0, 1e3 * p99_s)
            points.setdefault(cell.spec, []).append(point)
    lines: dict[Spec, Line] = {}
    for spec, each in points.items():
        if len(each) >= 3:
            _, rates, latencies_ms = zip(*sorted(each), strict=True)
            lines[spec] = (rates, latencies_ms)
    if not lines:
        return None
    figure, axes = new_axes("images/s", "latency at p99")
    axes.yaxis.set_major_formatter(milliseconds)
    draw_lines(axes, lines)
    ends = (f"{s} {short(x[-1])}/s at {seconds(y[-1] / 1e3)}" for s, (x, y) in lines.items())
    return draw(figure, f"Lines of p99 latency against images/s. They end at: {_listed(ends)}.")


def server(figures: Figures) -> Picture | None:
    """The search: every rate that was tried, and p99 at it; the line is the objective."""
    cells = [cell for cell in figures.samples if cell.scenario == "Server"]
    tried = {cell.spec: [s for s in figures.valid(cell) if s.num_calls] for cell in cells}
    tried = {spec: samples for spec, samples in tried.items() if samples}
    if not tried:
        return None
    figure, axes = new_axes("calls/s sent, whether answered or not", "latency at p99")
    axes.yaxis.set_major_formatter(milliseconds)
    slo_ms = 1e3 * figures.results.latency_slo_s
    axes.axhline(slo_ms, color=INK, linewidth=1)
    axes.annotate("objective", (1.01, slo_ms), color=INK, va="center", annotation_clip=False,
                  xycoords=("axes fraction", "data"))  # fmt: skip
    for spec, samples in tried.items():
        axes.scatter([sample.offered_per_s or 0 for sample in samples],
                     [1e3 * sample.latency.quantile(0.99) for sample in samples],
                     s=16, color=style(spec)["color"], alpha=0.6, linewidth=0)  # fmt: skip
    axes.set_ylim(None, 50 * slo_ms)
    best = sorted((rate, cell.spec) for cell in cells if (rate := figures.of(cell)))
    for row, (rate, spec) in enumerate(best):
        height = 0.97 - 0.06 * (row % 4)
        axes.plot([rate, rate], [0, height], transform=axes.get_xaxis_transform(), **style(spec))
        axes.annotate(f"{spec} {rate:,.0f}/s", (rate, height), (4, 0), va="top",
                      xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                      color=style(spec)["color"], backgroundcolor="white")  # fmt: skip
    limits = _listed(f"{spec} {short(rate)}/s" for rate, spec in best)
    return draw(
        figure,
        f"Dots of p99 latency against the rates that were tried, and lines at the highest rate "
        f"with p99 within {slo_ms:g} ms: {limits}.",
    )


def latency(figures: Figures) -> Picture | None:
    """Latency by percentile, one call at a time, all rounds together."""
    totals = {
        cell.spec: Histogram.joined(sample.latency for sample in figures.valid(cell))
        for cell in figures.rounds
        if cell.scenario == "SingleStream" and cell.spec.target != "null"
    }
    if not totals:
        return None
    figure, axes = new_axes("percentile of the calls", "latency, one call at a time", log="y")
    lines: dict[Spec, Line] = {}
    for spec, total in totals.items():
        # A quantile beyond which fewer than three calls lie says nothing.
        seen = _QUANTILES[: max(1, int(np.searchsorted(_QUANTILES, 1 - 3 / total.total)))]
        lines[spec] = (list(-np.log10(1 - seen)), [1e3 * total.quantile(share) for share in seen])
    axes.set_xticks([-np.log10(1 - share) for share in _NINES], list(_NINES.values()))
    axes.set_xlim(0, max(x[-1] for x, _ in lines.values()) * 1.05)
    axes.yaxis.set_major_formatter(milliseconds)
    draw_lines(axes, lines, marker="")
    medians = _listed(f"{spec} {seconds(total.quantile(0.5))}" for spec, total in totals.items())
    return draw(figure, f"Lines of latency against percentile. At the median: {medians}.")


def batches(figures: Figures) -> Picture | None:
    """Images a second by images a call; dotted where CUDA overtakes the CPU."""
    curves = {spec: figures.offline(spec) for spec in figures.specs if spec.target != "null"}
    lines: dict[Spec, Line] = {
        spec: (list(curve), list(curve.values()))
        for spec, curve in curves.items()
        if len(curve) > 1
    }
    if not lines:
        return None
    figure, axes = new_axes("images a call", "images/s")
    for spec in lines:
        if spec.device == "cuda" and (size := figures.crossover(spec)):
            axes.axvline(size, color=style(spec)["color"], linestyle=":")
    ticks = sorted({size for sizes, _ in lines.values() for size in sizes})
    axes.set_xticks(ticks, list(map(str, ticks)))
    draw_lines(axes, lines)
    ends = (f"{s} {short(y[-1])}/s with {x[-1]} a call" for s, (x, y) in lines.items())
    return draw(figure, f"Lines of images/s against images a call. They end at: {_listed(ends)}.")


def formed(figures: Figures) -> Picture | None:
    """The sizes of the runs that formed, as shares, where several callers send one image."""
    rows = {}
    for cell, samples in figures.samples.items():
        if cell.scenario == "Server":
            samples = [s for s in samples if s.holds(figures.results.latency_slo_s)]
        counts = [sum(s.batch_sizes.get(size, 0) for s in samples) for size in _BUCKETS]
        if sum(counts) and cell.batch == 1 and cell.callers != 1 and not cell.overload:
            callers = f"{cell.callers} callers" if cell.scenario == "ClosedLoop" else cell.scenario
            rows[f"{cell.spec}, {callers}"] = np.array(counts) / sum(counts)
    if not rows:
        return None
    figure, axes = new_axes("images in a run, up to", "", log="", height=0.34 * len(rows) + 1.2)
    axes.imshow(list(rows.values()), cmap="Blues", vmin=0, vmax=1.3, aspect="auto",
                interpolation="none")  # fmt: skip
    for (row, column), share in np.ndenumerate(list(rows.values())):
        if share >= 0.005:
            colour = INK if share < 0.6 else "white"
            axes.text(column, row, f"{share:.0%}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(_BUCKETS)), _BUCKETS)
    axes.set_yticks(range(len(rows)), list(rows))
    axes.grid(visible=False)
    axes.spines[:].set_visible(False)
    commonest = (
        f"{name}: {shares.max():.0%} of the runs with up to {_BUCKETS[shares.argmax()]}"
        for name, shares in rows.items()
    )
    return draw(figure, f"A grid of shares, by size of the run. {'; '.join(commonest)}.")


def _listed(parts: Iterable[str]) -> str:
    return ", ".join(parts) or "none"
