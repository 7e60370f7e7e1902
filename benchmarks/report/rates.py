"""The tables of rates and latencies."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import median

from benchmarks.load.trace import Outcome
from benchmarks.report.figures import Figures
from benchmarks.report.ratios import interpolate
from benchmarks.report.table import NONE, Table, seconds, short
from benchmarks.run.cell import Cell
from benchmarks.run.result_file import Sample
from benchmarks.run.scenarios import DEADLINES
from benchmarks.targets.target import Spec

NOT_MEASURED = "not measured"


def targets(figures: Figures) -> Table:
    """Lay out every target's figures, and how many times as fast as the first one it is."""
    results, specs = figures.results, figures.specs
    cells = [cell for cell in figures.rounds if _is_headline(cell, figures)]
    comparable = {cell.spec for cell in figures.samples if replace(cell, spec=specs[0]) in cells}
    skipped = dict.fromkeys(skip.spec for skip in results.skips if skip.spec not in specs)
    rows = [["target", *(_heading(cell, results.latency_slo_s) for cell in cells)]]
    rows += [
        [str(spec), *(_entry(replace(cell, spec=spec), figures) for cell in cells)]
        for spec in [*(spec for spec in specs if spec in comparable), *skipped]
    ]
    note = (
        f"Medians of {results.settings['rounds']} interleaved rounds; in brackets how many times "
        f"as fast as {_first(figures)}: the median of the rounds' ratios, and the least to the "
        f"greatest of {results.settings['rounds']} rounds. "
        "Rates drift by tens of percent from run to run on shared machines: trust the ratios."
    )
    return Table("Targets", note, rows if cells else [])


def _first(figures: Figures) -> str:
    return str(figures.specs[0]) if figures.specs else NONE


def _is_headline(cell: Cell, figures: Figures) -> bool:
    """Keep the table narrow: of ClosedLoop and Offline the smallest and the largest size."""
    same = [c for c in figures.rounds if (c.spec, c.scenario) == (cell.spec, cell.scenario)]
    return cell.spec == figures.specs[0] and not cell.overload and cell in (min(same), max(same))


def _heading(cell: Cell, latency_slo_s: float) -> str:
    return {
        "SingleStream": "SingleStream, p90",
        "MultiStream": "MultiStream, p99",
        "ClosedLoop": f"ClosedLoop, {cell.in_flight} callers",
        "Server": f"Server, p99 ≤ {latency_slo_s * 1e3:g} ms",
        "Offline": f"Offline, {cell.batch} a call",
    }[cell.scenario]


def _entry(cell: Cell, figures: Figures) -> str:
    value, ratio = figures.of(cell), figures.speedup(cell)
    if value is None:
        return NOT_MEASURED
    text = seconds(value) if cell.is_latency else f"{short(value)}/s"
    return f"{text} ({ratio})" if ratio else text


def closed_loops(figures: Figures) -> Table:
    """Lay out every closed loop: its rate, also against the first target's, and its tail."""
    rows = [["target", "in flight", "images/s", f"× {_first(figures)}", "p50", "p99"]]
    for cell in figures.rounds:
        if cell.scenario == "ClosedLoop":
            latencies = [sample.latency for sample in figures.valid(cell)]
            tail = [seconds(median(h.quantile(share) for h in latencies)) for share in (0.5, 0.99)]
            rate, ratio = short(figures.of(cell)), str(figures.speedup(cell) or NONE)
            size = f", {cell.batch} a call" if cell.batch > 1 else ""
            rows.append([str(cell.spec), cell.in_flight + size, rate, ratio, *tail])
    note = (
        "Calls of one image where no size is named; C × M: M in flight on each of C connections, "
        "or on each of C streams. Medians of the rounds; ratios with the least to the greatest of "
        "them."
    )
    return Table("Closed loops", note, rows)


_OUTCOMES = (
    Outcome.DUE, Outcome.SENT, Outcome.IN_TIME, Outcome.REFUSED, Outcome.LATE, Outcome.FAILED,
)  # fmt: skip


def overload(figures: Figures) -> Table:
    """Lay out what is answered in time of more than can be, and what becomes of the rest."""
    rows = [["target", "callers", "offered", "offered/s", "sent/s", "in time/s", "share",
             "refused/s", "late/s", "failed/s"]]  # fmt: skip
    for cell in figures.rounds:
        if cell.overload:
            valid = figures.valid(cell)
            share = cell.overload * median(
                _per_s(each, Outcome.IN_TIME) / _per_s(each, Outcome.DUE) for each in valid
            )
            rates = [short(median(_per_s(s, outcome) for s in valid)) for outcome in _OUTCOMES]
            callers, offered = DEADLINES[cell.scenario].value, f"{cell.overload:g} ×"
            rows.append([str(cell.spec), callers, offered, *rates[:3], f"{share:.0%}", *rates[3:]])
    note = (
        "Offered: as a multiple of what a closed loop of 8 × 32 reached just before. Each caller "
        "gives up 50 ms after its call was due, and resets the stream. In time: answered by then. "
        "Share: of the closed loop's rate. Refused: by a status in time. Late: what else was sent. "
        "Medians of the rounds."
    )
    return Table("Overload", note, rows)


def _per_s(sample: Sample, outcome: str) -> float:
    return sample.outcomes.get(outcome, 0) / sample.duration_s


def crossovers(figures: Figures) -> Table:
    """Lay out the batch size from which CUDA is the faster device, for each target on CUDA."""
    specs = sorted({*figures.specs, *(skip.spec for skip in figures.results.skips)})
    rows = [["target", "beside", "CUDA is faster from"]]
    for spec in specs:
        if spec.device == "cuda":
            cpu = figures.on_cpu(spec)
            sizes = sorted(figures.offline(spec).keys() & figures.offline(cpu).keys())
            size = figures.crossover(spec)
            missing = f"no size up to {sizes[-1]}" if sizes else NOT_MEASURED
            rows.append([str(spec), str(cpu), str(size or missing)])
    note = (
        "Images a call in Offline: a measured size, from which on CUDA leads at every larger one."
    )
    return Table("Crossover", note, rows)


_ECHO = {"h2": "echo", "native": "echo", "grpcio": "echo-grpcio"}
"""What prices the transport of each of our servers; "native" is what h2 replaced."""


def composition(figures: Figures) -> Table:
    """Compare our servers with what their parts allow: 1 / (1 / transport + 1 / run)."""
    rows = [["images/s", "runs of", "measured", "1/(1/echo + 1/run)", "share", "bare"]]
    num_cores = figures.results.environment["cores_for"]["target"]
    for cell in figures.rounds:
        is_alone = cell.spec.workers == num_cores == 1 and cell.spec.target in _ECHO
        if is_alone and cell.scenario in ("ClosedLoop", "Offline"):
            rows += _parts(cell, figures)
    note = (
        "On one core. Share: of what the transport and runs, of the mean size that formed, would "
        "allow if each found its caches warm. Bare: the loop that has the transport and the model "
        "and nothing else, in the same rounds."
    )
    return Table("What the parts allow", note, rows)


def _parts(cell: Cell, figures: Figures) -> Iterator[list[str]]:
    echo = Spec(target=_ECHO[cell.spec.target])
    engine = figures.offline(replace(cell.spec, target="engine"))
    formed = mean_batch(figures.samples[cell])
    run = interpolate(formed, list(engine), list(engine.values()))
    measured, transport = figures.of(cell), figures.of(replace(cell, spec=echo))
    if measured and transport and run:
        allowed = 1 / (1 / transport + 1 / run)
        bare = figures.of(replace(cell, spec=replace(cell.spec, target="bare")))
        share, alone = f"{measured / allowed:.0%}", bare if echo.target == "echo" else None
        yield [str(cell), f"{formed:.1f}", *map(short, (measured, allowed)), share, short(alone)]


def mean_batch(samples: Sequence[Sample]) -> float:
    """Return the mean number of images in a run; 0 if unknown."""
    runs = sum(sum(sample.batch_sizes.values()) for sample in samples)
    return sum(sample.num_calls * sample.batch for sample in samples) / runs if runs else 0.0
