"""The picture: rates by callers in flight, and latency by percentile; readable on a telephone."""

import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.report.figures import Figures
from benchmarks.report.tables import seconds, short
from benchmarks.run.histogram import Latencies
from benchmarks.targets.target import Spec

_WIDTH_IN, _PANEL_IN = 4.06, 2.9
"""390 pixels, at the 96 of an inch."""
_QUANTILES = 1 - 10 ** -np.linspace(0, 4, 200)
_NINES = {0.5: "50", 0.9: "90", 0.99: "99", 0.999: "99.9", 0.9999: "99.99"}


def draw(figures: Figures, path: Path) -> str:
    """Draw the headline; equal figures give equal files.

    Args:
        figures: the results.
        path: of the SVG file.

    Returns:
        The figures in words; empty if there is nothing to draw.
    """
    panels = [panel for panel in (_rates, _latencies) if panel(figures, None)]
    if not panels:
        return ""
    size = _WIDTH_IN, _PANEL_IN * len(panels) + 0.5
    with matplotlib.rc_context({"font.size": 9, "svg.fonttype": "none", "svg.hashsalt": "digits"}):
        figure = Figure(figsize=size, layout="constrained")
        every = figure.subplots(len(panels), squeeze=False)[:, 0]
        words = [panel(figures, axes) for panel, axes in zip(panels, every, strict=True)]
        figure.legend(*every[0].get_legend_handles_labels(), loc="outside upper center",
                      ncols=2, frameon=False)  # fmt: skip
        buffer = io.BytesIO()
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", metadata=metadata)
    path.write_bytes(b"\n".join(map(bytes.rstrip, buffer.getvalue().splitlines())) + b"\n")
    return " ".join(words)


def _dash(spec: Spec) -> str:
    return "--" if spec.precision == "int8" else ":" if spec.device == "cuda" else "-"


def _rates(figures: Figures, axes: Axes | None) -> str:
    """Draw closed loops: the rate by calls in flight; say the ratio to the strongest other."""
    lines: dict[Spec, dict[int, float]] = {}
    for cell in figures.rounds:
        if cell.scenario == "ClosedLoop" and cell.batch == 1:
            lines.setdefault(cell.spec, {})[cell.callers] = figures.of(cell) or 0.0
    most = max((max(line) for line in lines.values()), default=0)
    full = {str(spec): line[most] for spec, line in lines.items() if most in line}
    if axes is not None:
        for spec, line in lines.items():
            axes.plot([*sorted(line)], [line[n] for n in sorted(line)], _dash(spec), marker=".",
                      label=str(spec))  # fmt: skip
        axes.set(xlabel="calls in flight", title="calls a second", xscale="log", yscale="log")
        callers = sorted({number for line in lines.values() for number in line})
        axes.set_xticks(callers, [*map(str, callers)], minor=False)
        axes.set_xticks([], minor=True)
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: short(value)))
        axes.grid(alpha=0.3)
    if not full:
        return ""
    ordered = sorted(full.items(), key=lambda item: -item[1])
    others = [rate for name, rate in ordered if name.split()[0] != ordered[0][0].split()[0]]
    ratio = f", {ordered[0][1] / others[0]:.3g} × the strongest other target" if others else ""
    rates = ", ".join(f"{name} {short(rate)}" for name, rate in ordered)
    return f"Calls a second with {most} in flight: {rates}{ratio}."


def _latencies(figures: Figures, axes: Axes | None) -> str:
    """Draw one call at a time: latency by percentile, all rounds together."""
    totals = {
        cell.spec: Latencies.joined(sample.latency for sample in figures.valid(cell))
        for cell in figures.rounds
        if cell.scenario == "SingleStream"
    }
    if axes is not None:
        for spec, total in totals.items():
            # A quantile beyond which fewer than three calls lie says nothing.
            seen = _QUANTILES[: max(1, int(np.searchsorted(_QUANTILES, 1 - 3 / total.total)))]
            values = [total.quantile(share) for share in seen]
            axes.plot(-np.log10(1 - seen), values, _dash(spec), label=str(spec))
        axes.set(xlabel="percentile of the calls", title="latency of one call at a time",
                 yscale="log")  # fmt: skip
        axes.set_xticks([-np.log10(1 - share) for share in _NINES], list(_NINES.values()))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))
        axes.yaxis.set_minor_formatter(FuncFormatter(lambda value, _: ""))
        axes.grid(alpha=0.3)
    tails = ", ".join(
        f"{spec} {seconds(total.quantile(0.5))} and {seconds(total.quantile(0.99))}"
        for spec, total in totals.items()
    )
    return f"Latency of one call at a time, median and 99th percentile: {tails}." if totals else ""
