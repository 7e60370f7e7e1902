"""The pictures: one function a figure; a target has one colour throughout, int8 is dashed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace as replaced

import numpy as np

from benchmarks.report.axes import (
    label_ends,
    log_axes,
    milliseconds,
    new_axes,
    style,
    thousands,
)
from benchmarks.report.costs import cost_us
from benchmarks.report.figures import Key, Rounds, curve, figures, grouped, specs_of
from benchmarks.report.stats import crossover
from benchmarks.report.table import seconds, short
from benchmarks.run.histogram import Histogram
from benchmarks.run.result_file import Results, Sample
from benchmarks.targets.target import Spec
from reports.drawing import INK, MUTED, draw
from reports.page import Picture

_QUANTILES = 1 - 10 ** -np.linspace(0, 4, 200)
_NINES = {0.5: "50", 0.9: "90", 0.99: "99", 0.999: "99.9", 0.9999: "99.99"}
_BUCKETS = [str(2**power) for power in range(8)]


def pictures(results: Results) -> dict[str, Picture]:
    """Draw every picture that the results have something for."""
    found = figures(results)
    drawn = {
        "knee": knee(results),
        "server": server(results, found),
        "latency": latency(results),
        "batches": batches(results, found),
        "formed": formed(results),
        "cost": cost(results),
    }
    return {name: picture for name, picture in drawn.items() if picture is not None}


def knee(results: Results) -> Picture | None:
    """Throughput against latency in closed loops of more and more callers."""
    lines: dict[Spec, list[tuple[int, float, float]]] = {}
    for key, samples in grouped(_valid(results, "ClosedLoop")).items():
        point = (key.callers, _median(samples, lambda s: s.images_per_s), _p99(samples))
        lines.setdefault(key.spec, []).append(point)
    lines = {k: v for k, v in lines.items() if len(v) >= 3 and k.target != "null"}
    if not lines:
        return None
    figure, axes = new_axes("images/s", "latency at p99")
    log_axes(axes)
    labels = []
    for spec, points in lines.items():
        _, rates, latencies = zip(*sorted(points), strict=True)
        axes.plot(rates, [1e3 * s for s in latencies], marker="o", markersize=4, **style(spec))
        labels.append((rates[-1], 1e3 * latencies[-1], spec))
    axes.yaxis.set_major_formatter(milliseconds)
    label_ends(axes, labels)
    ends = [f"{spec} {short(rate)}/s at {seconds(ms / 1e3)}" for rate, ms, spec in labels]
    return draw(figure, f"Lines of p99 latency against images/s. They end at: {_listed(ends)}.")


def server(results: Results, found: Mapping[Key, Rounds]) -> Picture | None:
    """The search: every rate that was tried, and p99 at it; the line is the objective."""
    groups = grouped([s for s in _valid(results, "Server") if s.num_calls])
    if not groups:
        return None
    figure, axes = new_axes("calls/s sent, whether answered or not", "latency at p99")
    log_axes(axes)
    slo_ms = 1e3 * results.latency_slo_s
    axes.axhline(slo_ms, color=INK, linewidth=1)
    axes.annotate("objective", (1.01, slo_ms), color=INK, va="center", annotation_clip=False,
                  xycoords=("axes fraction", "data"))  # fmt: skip
    best = []
    for key, samples in groups.items():
        look = style(key.spec)
        axes.scatter([sample.offered_per_s or 0 for sample in samples],
                     [1e3 * sample.latency.quantile(0.99) for sample in samples],
                     s=16, color=look["color"], alpha=0.6, linewidth=0)  # fmt: skip
        if key in found:
            best.append((float(np.median(list(found[key].values()))), key.spec))
    axes.set_ylim(None, 50 * slo_ms)
    for row, (rate, spec) in enumerate(sorted(best)):
        height = 0.97 - 0.06 * (row % 4)
        axes.plot([rate, rate], [0, height], transform=axes.get_xaxis_transform(), **style(spec))
        axes.annotate(f"{spec} {rate:,.0f}/s", (rate, height), (4, 0), va="top",
                      xycoords=axes.get_xaxis_transform(), textcoords="offset points",
                      color=style(spec)["color"], backgroundcolor="white")  # fmt: skip
    axes.yaxis.set_major_formatter(milliseconds)
    limits = [f"{spec} {short(rate)}/s" for rate, spec in sorted(best)]
    return draw(
        figure,
        f"Dots of p99 latency against the rates that were tried, and lines at the highest rate "
        f"with p99 within {slo_ms:g} ms: {_listed(limits)}.",
    )


def latency(results: Results) -> Picture | None:
    """Latency by percentile, one call at a time, all rounds together."""
    groups = grouped(_valid(results, "SingleStream"))
    groups = {key: v for key, v in groups.items() if key.spec.target != "null"}
    if not groups:
        return None
    figure, axes = new_axes("percentile of the calls", "latency, one call at a time")
    log_axes(axes, "y")
    labels, medians = [], []
    for key, samples in groups.items():
        total = sum((sample.latency for sample in samples), Histogram.of([]))
        # Three calls beyond a point are the least that make it more than an anecdote.
        seen = _QUANTILES[: max(1, int(np.searchsorted(_QUANTILES, 1 - 3 / total.total)))]
        values = [1e3 * total.quantile(share) for share in seen]
        axes.plot(-np.log10(1 - seen), values, **style(key.spec))
        labels.append((-np.log10(1 - seen[-1]), values[-1], key.spec))
        medians.append(f"{key.spec} {seconds(total.quantile(0.5))}")
    axes.set_xticks([-np.log10(1 - share) for share in _NINES], list(_NINES.values()))
    axes.set_xlim(0, None)
    axes.yaxis.set_major_formatter(milliseconds)
    label_ends(axes, labels)
    alt = f"Lines of latency against percentile. At the median: {_listed(medians)}."
    return draw(figure, alt)


def batches(results: Results, found: Mapping[Key, Rounds]) -> Picture | None:
    """Images a second by images a call; dotted where CUDA overtakes the CPU."""
    curves = {spec: curve(found, spec, "Offline", lambda key: key.batch)
              for spec in specs_of(results) if spec.target != "null"}  # fmt: skip
    curves = {spec: line for spec, line in curves.items() if len(line[0]) > 1}
    if not curves:
        return None
    figure, axes = new_axes("images a call", "images/s")
    log_axes(axes)
    labels = []
    for spec, (sizes, rates) in curves.items():
        axes.plot(sizes, rates, marker="o", markersize=4, **style(spec))
        labels.append((sizes[-1], rates[-1], spec))
        cpu = curves.get(replaced(spec, device="cpu"), ([], []))
        if spec.device == "cuda" and cpu[0] == sizes and (size := crossover(sizes, cpu[1], rates)):
            axes.axvline(size, color=style(spec)["color"], linestyle=":")
            axes.annotate(f"{size:.0f}", (size, 0), (3, 4), xycoords=("data", "axes fraction"),
                          textcoords="offset points", color=style(spec)["color"])  # fmt: skip
    ticks = sorted({n for line in curves.values() for n in line[0]})
    axes.set_xticks(ticks, list(map(str, ticks)))
    axes.yaxis.set_major_formatter(thousands)
    label_ends(axes, labels)
    ends = [f"{spec} {short(rate)}/s with {size} a call" for size, rate, spec in labels]
    return draw(figure, f"Lines of images/s against images a call. They end at: {_listed(ends)}.")


def formed(results: Results) -> Picture | None:
    """The sizes of the runs that formed, as shares, where several calls of one image meet."""
    rows = {}
    for key, samples in grouped(
        [s for s in results.samples if s.batch == 1 and not s.overload]
    ).items():
        if key.scenario == "Server":
            samples = [s for s in samples if s.holds(results.latency_slo_s)]
        counts = [sum(s.batch_sizes.get(size, 0) for s in samples) for size in _BUCKETS]
        if sum(counts) and key.callers != 1:
            callers = f"{key.callers} callers" if key.scenario == "ClosedLoop" else key.scenario
            rows[f"{key.spec}, {callers}"] = np.array(counts) / sum(counts)
    if not rows:
        return None
    figure, axes = new_axes("images in a run, up to", "", height=0.34 * len(rows) + 1.2)
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
    commonest = [
        f"{name}: {shares.max():.0%} of the runs with up to {_BUCKETS[shares.argmax()]}"
        for name, shares in rows.items()
    ]
    return draw(figure, f"A grid of shares, by size of the run. {'; '.join(commonest)}.")


def cost(results: Results) -> Picture | None:
    """The target's processor time for a call of one image, by scenario."""
    marks = {"SingleStream": "o", "ClosedLoop": "s", "Server": "D"}
    above = {"SingleStream": 6, "ClosedLoop": -13, "Server": -13}  # points: where its number is
    groups = grouped([s for s in results.samples if s.scenario in marks and s.cpu_us_per_call])
    busiest: dict[tuple[Spec, str], float] = {}
    for key, samples in groups.items():  # in order of callers: the last is the busiest
        if key.spec.target != "null" and (value := cost_us(samples)):
            busiest[key.spec, key.scenario] = value
    specs = list(dict.fromkeys(spec for spec, _ in busiest))
    if not specs:
        return None
    figure, axes = new_axes("processor time of the target for a call of one image, µs", "",
                         height=0.34 * len(specs) + 1.3)  # fmt: skip
    log_axes(axes, "x")
    for (spec, scenario), value in busiest.items():
        axes.plot(value, specs.index(spec), marks[scenario], color=style(spec)["color"])
        axes.annotate(f"{value:.3g}", (value, specs.index(spec)), (0, above[scenario]),
                      textcoords="offset points", fontsize=9, color=MUTED, ha="center")  # fmt: skip
    for scenario in dict.fromkeys(scenario for _, scenario in busiest):
        axes.plot([], [], marks[scenario], color=MUTED, label=scenario)
    axes.set_yticks(range(len(specs)), list(map(str, specs)))
    axes.set_ylim(len(specs) - 0.5, -0.7)
    axes.legend(frameon=False, labelcolor=INK, ncols=3, loc="lower right", bbox_to_anchor=(1, 1))
    listed = [f"{spec} {value:.3g} µs in {scenario}" for (spec, scenario), value in busiest.items()]
    return draw(figure, f"Dots of processor time for a call of one image: {_listed(listed)}.")


def _listed(parts: Sequence[str]) -> str:
    return ", ".join(parts) or "none"


def _valid(results: Results, scenario: str) -> list[Sample]:
    return [s for s in results.samples if s.scenario == scenario and not s.invalid]


def _median(samples: Sequence[Sample], value: Callable[[Sample], float]) -> float:
    return float(np.median([value(sample) for sample in samples]))


def _p99(samples: Sequence[Sample]) -> float:
    return _median(samples, lambda sample: sample.latency.quantile(0.99))
