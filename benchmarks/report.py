"""The report: tables, the headline as a picture, a Markdown page, the README's table."""

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.loops import Outcome
from benchmarks.result_file import LATENCY, Cell, Latencies, Results, Sample, UnusableResults


class Interval(NamedTuple):
    """A ratio, with the least and the greatest of its rounds."""

    estimate: float
    low: float
    high: float

    def __str__(self) -> str:
        if math.isinf(self.high):
            return f"{self.estimate:.3g} ×, one round"
        return f"{self.estimate:.3g} ×, {self.low:.3g} to {self.high:.3g}"


def paired_ratio(values: npt.ArrayLike, baseline: npt.ArrayLike) -> Interval:
    """Compare two quantities that were measured in the same rounds.

    A round's drift affects both, and cancels in its own ratio.

    Args:
        values: one positive number per round.
        baseline: the other quantity's, in the same rounds.

    Returns:
        The median, the least and the greatest of values / baseline; one round has no range.
    """
    ratios = np.asarray(values, float) / np.asarray(baseline, float)
    low, high = (ratios.min(), ratios.max()) if len(ratios) > 1 else (0.0, math.inf)
    return Interval(float(np.median(ratios)), float(low), float(high))


class Figures:
    """Results by cell, in the order of their first appearance."""

    def __init__(self, results: Results) -> None:
        """Work out the figure of every cell in every round in which it is valid."""
        self.results = results
        self.samples: dict[Cell, list[Sample]] = {}
        for sample in results.samples:
            self.samples.setdefault(sample.cell, []).append(sample)
        every = {cell: _rounds(cell, s, results.latency_slo_s) for cell, s in self.samples.items()}
        self.rounds = {cell: rounds for cell, rounds in every.items() if rounds}
        started = [start.spec for start in results.starts]
        self.specs = list(dict.fromkeys([*started, *(cell.spec for cell in self.samples)]))
        """The targets that were measured; those by address, which were not started, come last."""

    def valid(self, cell: Cell) -> list[Sample]:
        """Return a cell's samples that measure the target."""
        return [sample for sample in self.samples.get(cell, ()) if not sample.invalid]

    def of(self, cell: Cell) -> float | None:
        """Return the median of a cell's rounds."""
        return median(self.rounds[cell].values()) if cell in self.rounds else None

    def cost_us(self, cell: Cell) -> float | None:
        """Return the target's processor time for an image, in microseconds, at the median."""
        costs = [s.cpu_us_per_call / s.batch for s in self.valid(cell) if s.cpu_us_per_call]
        return median(costs) if costs else None

    def speedup(self, cell: Cell) -> Interval | None:
        """Return how many times as fast a cell is as that of the first target, by their rounds.

        Returns:
            None for the first target itself, and where the two have no round in common.
        """
        first = replace(cell, spec=self.specs[0])
        ours, theirs = self.rounds.get(cell, {}), self.rounds.get(first, {})
        rounds = sorted(set(ours) & set(theirs))
        if not rounds or cell == first:
            return None
        values, others = [ours[n] for n in rounds], [theirs[n] for n in rounds]
        return paired_ratio(others, values) if cell.is_latency else paired_ratio(values, others)


def _rounds(cell: Cell, samples: Sequence[Sample], latency_slo_s: float) -> Mapping[int, float]:
    figures = {}
    for number in dict.fromkeys(sample.round for sample in samples):
        of_round = [sample for sample in samples if sample.round == number]
        valid = [sample for sample in of_round if not sample.invalid]
        if cell.scenario == "Server":
            figures[number] = server_rate(of_round, latency_slo_s)
        elif valid and cell.is_latency:
            latency = Latencies.joined(sample.latency for sample in valid)
            figures[number] = latency.quantile(LATENCY[cell.scenario])
        elif valid:
            figures[number] = median(sample.images_per_s for sample in valid)
    return {number: value for number, value in figures.items() if value is not None}


def server_rate(samples: Sequence[Sample], latency_slo_s: float) -> float | None:
    """Return the highest rate, in images/s, that kept to the objective in one search.

    None if nothing did, or if the rates above it failed by the generator's fault alone: then the
    target may do better, and the search has not found its limit.
    """
    kept = [sample for sample in samples if sample.holds(latency_slo_s)]
    best = max((sample.offered_per_s or 0 for sample in kept), default=0.0)
    above = [sample for sample in samples if (sample.offered_per_s or 0) > best]
    if not best or (above and all(sample.invalid for sample in above)):
        return None
    return best * samples[0].batch


NONE = "–"
NOT_MEASURED = "not measured"
_TAIL = (0.5, 0.9, 0.99, 0.999)
"""Quantiles of latency that are shown."""


@dataclass(frozen=True, slots=True)
class ReportTable:
    """A heading row and rows, under a title and a note."""

    title: str
    note: str
    rows: Sequence[Sequence[str]]

    def markdown(self) -> str:
        """Write as markdown, without the title."""
        head, *body = ["| " + " | ".join(row) + " |" for row in self.rows]
        rule = "|---" + "|---:" * (len(self.rows[0]) - 1) + "|"
        return "\n".join([head, rule, *body])

    def text(self) -> str:
        """Lay out in columns, for a terminal."""
        widths = [max(map(len, column)) for column in zip(*self.rows, strict=True)]
        lines = (zip(row, widths, strict=True) for row in self.rows)
        return "\n".join("  ".join(c.ljust(w) for c, w in line).rstrip() for line in lines)


def seconds(value: float) -> str:
    """Write a time in the unit that suits it."""
    if value < 1e-3:
        return f"{value * 1e6:.3g} µs"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def short(number: float | None) -> str:
    """Write a number with three digits; a dash for None."""
    if number is None:
        return NONE
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def every(results: Results) -> list[ReportTable]:
    """Make every table that the results have something for."""
    figures = Figures(results)
    made = (make(figures) for make in (targets, cells, overload, starts, left_out))
    return [table for table in made if len(table.rows) > 1]


def targets(figures: Figures) -> ReportTable:
    """Lay out every target's figures, and how many times as fast as the first one it is."""
    results, specs = figures.results, figures.specs
    shown = [cell for cell in figures.rounds if _is_headline(cell, figures)]
    comparable = {cell.spec for cell in figures.samples if replace(cell, spec=specs[0]) in shown}
    skipped = dict.fromkeys(skip.spec for skip in results.skips if skip.spec not in specs)
    loops = [cell for cell in shown if cell.scenario == "ClosedLoop"][-1:]
    costs = [f"CPU seconds a million, {cell.in_flight} callers" for cell in loops]
    rows = [["target", *(_heading(cell, results.latency_slo_s) for cell in shown), *costs]]
    rows += [
        [
            str(spec),
            *(_entry(replace(cell, spec=spec), figures) for cell in shown),
            *(short(figures.cost_us(replace(cell, spec=spec))) for cell in loops),
        ]
        for spec in [*(spec for spec in specs if spec in comparable), *skipped]
    ]
    note = (
        f"Medians of {results.settings['rounds']} interleaved rounds; in brackets how many times "
        f"as fast as {_first(figures)}: the median of the rounds' ratios, and the least to the "
        f"greatest of {results.settings['rounds']} rounds. "
        "Rates drift by tens of percent from run to run on shared machines: trust the ratios."
    )
    return ReportTable("Targets", note, rows if shown else [])


def tails(figures: Figures) -> ReportTable:
    """Lay out latencies of a single caller, and of many whose headers change."""
    rows = [["latency", *(f"p{100 * share:g}" for share in _TAIL)]]
    for scenario in ("SingleStream", "NewHeaders"):
        for cell in figures.rounds:
            if cell.scenario != scenario or cell.spec.precision == "int8":
                continue
            latencies = [sample.latency for sample in figures.valid(cell)]
            values = (seconds(median(h.quantile(q) for h in latencies)) for q in _TAIL)
            rows.append([f"{cell.task}, {cell.spec}", *values])
    return ReportTable("Tails", "", rows)


def _first(figures: Figures) -> str:
    return str(figures.specs[0]) if figures.specs else NONE


def _is_headline(cell: Cell, figures: Figures) -> bool:
    """Keep the table narrow: of ClosedLoop and Offline the smallest and the largest size."""
    same = [c for c in figures.rounds if (c.spec, c.scenario) == (cell.spec, cell.scenario)]
    return cell.spec == figures.specs[0] and not cell.overload and cell in (min(same), max(same))


def _heading(cell: Cell, latency_slo_s: float) -> str:
    return {
        "SingleStream": "SingleStream, p90",
        "ClosedLoop": f"ClosedLoop, {cell.in_flight} callers",
        "NewHeaders": f"NewHeaders, {cell.in_flight} callers",
        "Server": f"Server, p99 ≤ {latency_slo_s * 1e3:g} ms",
        "Offline": f"Offline, {cell.batch} a call",
    }[cell.scenario]


def _entry(cell: Cell, figures: Figures) -> str:
    value, ratio = figures.of(cell), figures.speedup(cell)
    if value is None:
        return NOT_MEASURED
    text = seconds(value) if cell.is_latency else f"{short(value)}/s"
    return f"{text} ({ratio})" if ratio else text


def cells(figures: Figures) -> ReportTable:
    """Lay out all that was measured: the figure, its ratio, latencies, processor time."""
    rows = [["scenario", "target", "figure", f"× {_first(figures)}",
             *(f"p{100 * share:g}" for share in _TAIL), "CPU µs"]]  # fmt: skip
    tasks = list(dict.fromkeys(cell.task for cell in figures.rounds))
    for cell in sorted(figures.rounds, key=lambda cell: tasks.index(cell.task)):
        value = figures.of(cell) or 0.0
        if not cell.overload:
            figure = seconds(value) if cell.is_latency else f"{short(value)}/s"
            latencies = [sample.latency for sample in figures.valid(cell)]
            tail = [seconds(median(h.quantile(q) for h in latencies)) for q in _TAIL]
            ratio, cost = figures.speedup(cell), short(figures.cost_us(cell))
            tail = [NONE] * len(_TAIL) if cell.scenario == "Server" else tail
            rows.append([cell.task, str(cell.spec), figure, str(ratio or NONE), *tail, cost])
    note = (
        "Calls of one image where no size is named; C × M: M in flight on each of C connections. "
        "Medians of the rounds; ratios with the least to the greatest of them. CPU: the target's "
        "processor time for an image."
    )
    return ReportTable("All that was measured", note, rows)


_OUTCOMES = (
    Outcome.DUE, Outcome.SENT, Outcome.IN_TIME, Outcome.REFUSED, Outcome.LATE, Outcome.FAILED,
)  # fmt: skip


def overload(figures: Figures) -> ReportTable:
    """Lay out how many of too many calls are answered in time, and how the others end."""
    rows = [["target", "offered", "offered/s", "sent/s", "in time/s", "share", "refused/s",
             "late/s", "failed/s"]]  # fmt: skip
    for cell in figures.rounds:
        if cell.overload:
            valid = figures.valid(cell)
            share = cell.overload * median(
                _per_s(each, Outcome.IN_TIME) / _per_s(each, Outcome.DUE) for each in valid
            )
            rates = [short(median(_per_s(s, outcome) for s in valid)) for outcome in _OUTCOMES]
            offered = f"{cell.overload:g} ×"
            rows.append([str(cell.spec), offered, *rates[:3], f"{share:.0%}", *rates[3:]])
    note = (
        "Offered: as a multiple of the rate of a closed loop of 8 × 32 just before. Each caller "
        "gives up 50 ms after its call was due, and resets the stream. In time: answered by then. "
        "Share: of the closed loop's rate. Refused: by a status in time. Late: the rest of those "
        "sent. Medians of the rounds."
    )
    return ReportTable("Overload", note, rows)


def _per_s(sample: Sample, outcome: str) -> float:
    return sample.outcomes.get(outcome, 0) / sample.duration_s


def starts(figures: Figures) -> ReportTable:
    """Lay out startup time and memory."""
    rows = [["target", "start to first answer", "memory"]]
    rows += [
        [str(start.spec), seconds(start.startup_s), f"{(start.memory_bytes or 0) / 2**20:.0f} MiB"]
        for start in figures.results.starts
    ]
    return ReportTable("Start and memory", "Memory (PSS) after the last round.", rows)


def left_out(figures: Figures) -> ReportTable:
    """Lay out the targets and runs without a figure, and why."""
    rows = [["target or cell", "runs", "why, the first time"]]
    rows += [[str(skip.spec), NONE, skip.reason] for skip in figures.results.skips]
    for cell, samples in figures.samples.items():
        reasons = [sample.invalid for sample in samples if sample.invalid]
        if reasons:
            rows.append([str(cell), f"{len(reasons)} of {len(samples)}", reasons[0]])
    return ReportTable(NOT_MEASURED.capitalize(), "Nothing is extrapolated.", rows)


_WIDTH, _LABEL, _LINE, _TEXT = 360, 96, 18, 86
"""Pixels: of all, of a bar's name before it, from bar to bar, of its figure behind it."""
_OURS = ("grpcio", "h2", "http")
"""How the names of our own targets begin."""
_STYLE = """
text { font: 12px sans-serif; fill: #222 } .title { font-weight: bold }
rect { fill: #9ab } .ours { fill: #17c } svg { background: #fff }
@media (prefers-color-scheme: dark) { text { fill: #ddd } svg { background: #181818 } }
"""

Bar = tuple[str, float, str]
"""A name, a value, and its text."""


def svg(results: Results) -> str:
    """Draw the closed loops, and the latency of a single caller; empty without either."""
    figures, groups = Figures(results), list[tuple[str, list[Bar]]]()
    loops = [cell for cell in figures.rounds if cell.scenario in ("ClosedLoop", "NewHeaders")]
    for task in dict.fromkeys(cell.task for cell in loops):
        groups.append((f"{task} in flight, calls/s", [*_rates(figures, task)]))
    alone = [cell for cell in figures.rounds if cell.scenario == "SingleStream"]
    for share in (0.5, 0.99, 0.999) if alone else ():
        bars = list[Bar]()
        for cell in alone:
            value = median(sample.latency.quantile(share) for sample in figures.valid(cell))
            bars.append((str(cell.spec), value, seconds(value)))
        groups.append((f"One caller, p{100 * share:g}", bars))
    return _draw([group for group in groups if group[1]]) if groups else ""


def _rates(figures: Figures, task: str) -> Iterable[Bar]:
    """Yield rates, ours with the ratio to the strongest of the others."""
    rates = {
        str(cell.spec): figures.of(cell) or 0.0 for cell in figures.rounds if cell.task == task
    }
    strongest = max((rate for name, rate in rates.items() if not name.startswith(_OURS)), default=0)
    for name, rate in rates.items():
        is_ours = strongest and name.startswith(_OURS)
        yield name, rate, short(rate) + (f" ({rate / strongest:.2g} ×)" if is_ours else "")


def _draw(groups: Sequence[tuple[str, Sequence[Bar]]]) -> str:
    parts, y = [], 0
    for title, bars in groups:
        y += _LINE + 8
        parts.append(f'<text class="title" x="4" y="{y}">{escape(title)}</text>')
        longest = max(value for _, value, _ in bars)
        for name, value, text in bars:
            y += _LINE
            width = max(1.0, (_WIDTH - _LABEL - _TEXT) * value / longest)
            ours = ' class="ours"' if name.startswith(_OURS) else ""
            parts += [
                f'<text x="4" y="{y}">{escape(name)}</text>',
                f'<rect{ours} x="{_LABEL}" y="{y - 10}" width="{width:.1f}" height="12"/>',
                f'<text x="{_LABEL + width + 4:.1f}" y="{y}">{escape(text)}</text>',
            ]
    said = "; ".join(f"{t}: " + ", ".join(f"{n} {x}" for n, _, x in bars) for t, bars in groups)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y + 12}" width="{_WIDTH}"'
        f' role="img" aria-label="{escape(said)}"><style>{_STYLE}</style>\n'
        + "\n".join(parts) + "\n</svg>\n"
    )  # fmt: skip


BEGIN, END = "<!-- benchmarks: written by `make bench-readme` -->", "<!-- /benchmarks -->"

PICTURE = "![Rates by calls in flight, and latency by percentile](benchmarks/results/bench.svg)"


def write(results: Results, path: Path) -> Path:
    """Write NAME.md and NAME.svg beside NAME.json, and return the page's path."""
    page, parts = path.with_suffix(".md"), ["# Benchmark report", machine(results)]
    if drawn := svg(results):
        path.with_suffix(".svg").write_text(drawn, "utf-8")
        parts.append(f"![Rates by calls in flight, and latency by percentile]({path.stem}.svg)")
    for table in every(results):
        parts += [f"## {table.title}", table.note, table.markdown()]
    page.write_text("\n\n".join(parts) + "\n", "utf-8")
    return page


def machine(results: Results) -> str:
    """Say in a few sentences where and with which software was measured."""
    there, settings = results.environment, results.settings
    cores = there["cores_for"]
    generators = sorted({sample.generator for sample in results.samples})
    packages = ", ".join(f"{name} {version}" for name, version in there["packages"].items())
    return (
        f"Suite {results.suite}, {results.date}, commit {there['commit']}. {there['cpu']}, "
        f"{there['cores']} cores: {cores['target']} for the target, {cores['generator']} for the "
        f"generator. GPU: {there['gpu'] or 'none'}. Governor: {there['governor'] or 'unknown'}. "
        f"{settings['rounds']} interleaved rounds of {settings['seconds']:g} s a run; arrivals in "
        f"the Server scenario: {settings['arrivals']}. Load by: {', '.join(generators)}. "
        f"Python {there['python']}, {packages}."
    )


def readme_section(results: Results) -> str:
    """Return the text between the README's two markers, with them."""
    figures = Figures(results)
    table, note = targets(figures), machine(results)
    parts = [table.markdown(), tails(figures).markdown(), PICTURE, f"{table.note} {note}"]
    return "\n\n".join([BEGIN, *parts, END])


def update_readme(readme: Path, results: Results) -> bool:
    """Put the table into the README; return whether that changed it.

    Raises:
        UnusableResults: the README lacks the markers.
    """
    old = readme.read_text("utf-8")
    between = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    new, num_found = between.subn(lambda _: readme_section(results), old)
    if not num_found:
        raise UnusableResults(f"{readme} lacks the lines {BEGIN!r} and {END!r}")
    readme.write_text(new, "utf-8")
    return new != old
