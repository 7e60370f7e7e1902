"""The picture: latency by percentile, one call at a time."""

import io
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from benchmarks.report.figures import Figures
from benchmarks.report.tables import seconds
from benchmarks.run.histogram import Histogram

_QUANTILES = 1 - 10 ** -np.linspace(0, 4, 200)
_NINES = {0.5: "50", 0.9: "90", 0.99: "99", 0.999: "99.9", 0.9999: "99.99"}


def latency(figures: Figures, path: Path) -> str:
    """Draw latency by percentile, all rounds together; equal figures give equal files.

    Args:
        figures: the results.
        path: of the SVG file.

    Returns:
        The figures in words; empty if there is nothing to draw.
    """
    totals = {
        cell.spec: Histogram.joined(sample.latency for sample in figures.valid(cell))
        for cell in figures.rounds
        if cell.scenario == "SingleStream" and cell.spec.target != "null"
    }
    if not totals:
        return ""
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    axes = figure.subplots()
    for spec, total in totals.items():
        # A quantile beyond which fewer than three calls lie says nothing.
        seen = _QUANTILES[: max(1, int(np.searchsorted(_QUANTILES, 1 - 3 / total.total)))]
        dash = "--" if spec.precision == "int8" else ":" if spec.device == "cuda" else "-"
        values = [total.quantile(share) for share in seen]
        axes.plot(-np.log10(1 - seen), values, dash, label=str(spec))
    axes.set(xlabel="percentile of the calls", ylabel="latency, one call at a time", yscale="log")
    axes.set_xticks([-np.log10(1 - share) for share in _NINES], list(_NINES.values()))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: seconds(value)))
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    buffer = io.BytesIO()
    metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    # Text stays text: smaller and searchable. The salt makes ids repeatable.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "digits"}):
        figure.savefig(buffer, format="svg", metadata=metadata)
    path.write_bytes(b"\n".join(map(bytes.rstrip, buffer.getvalue().splitlines())) + b"\n")
    medians = (f"{spec} {seconds(total.quantile(0.5))}" for spec, total in totals.items())
    return f"Lines of latency against percentile. At the median: {', '.join(medians)}."
