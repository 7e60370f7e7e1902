"""The tables of a report: targets, cells, overload, starts, and what was left out."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from benchmarks.figures import Figures
from benchmarks.loops import Outcome
from benchmarks.others import PEERS
from benchmarks.result_file import Cell, Results, Sample
from benchmarks.targets import IN_PROCESS, OURS, PRODUCT, Spec, product_of, protocol_of

NONE = "–"
_SAID = {"gRPC": "gRPC", "JSON": "JSON over HTTP", "bytes": "bytes over HTTP"}
_MANY = 64
"""Callers of the cells whose processor time is shown."""
NOT_MEASURED = "not measured"
_TAIL = (0.5, 0.9, 0.99, 0.999)
"""Quantiles of latency that are shown."""
_OUTCOMES = (
    Outcome.DUE, Outcome.SENT, Outcome.IN_TIME, Outcome.REFUSED, Outcome.LATE, Outcome.FAILED,
)  # fmt: skip


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
    value = float(f"{value:.3g}")  # 999.6 µs are 1 ms, not 1e+03 µs
    if value < 1e-3:
        return f"{value * 1e6:.3g} µs"
    return f"{value * 1e3:.3g} ms" if value < 1 else f"{value:.3g} s"


def short(number: float | None) -> str:
    """Write a number with three digits; a dash for None."""
    if number is None:
        return NONE
    number = float(f"{number:.3g}")  # 999.6 is 1 k, not 1e+03
    for unit, name in ((1e6, " M"), (1e3, " k")):
        if number >= unit:
            return f"{number / unit:.3g}{name}"
    return f"{number:.3g}"


def every(results: Results) -> list[ReportTable]:
    """Make every table that the results have something for."""
    figures = Figures(results)
    if is_comparison(results):
        pairs = dict.fromkeys(
            (cell.model, protocol_of(cell.spec.target)) for cell in figures.samples
        )
        made = [comparison(figures, *pair) for pair in pairs]
        made += [swap(figures), load(figures), overload(figures), costs(figures)]
        made += [versions(results), left_out(figures)]
    elif is_cost(figures):
        made = [serving_cost(figures), starts(figures), left_out(figures)]
    else:
        made = [make(figures) for make in (targets, cells, load, overload, starts, left_out)]
    return [table for table in made if len(table.rows) > 1]


def is_comparison(results: Results) -> bool:
    """Return whether several models were measured beside other projects' servers."""
    return any(sample.model for sample in results.samples)


def name_of(spec: Spec) -> str:
    """Return a target's product, and its settings where they are not the usual ones."""
    plain = str(replace(spec, target="", client="")).strip()
    return f"{product_of(spec.target)} {plain}".strip()


def comparison(figures: Figures, model: str, protocol: str) -> ReportTable:
    """Lay out all servers of one model in one protocol, a row for each number of callers."""
    rows = [
        ["server", "connections × calls", "rows/s", f"{PRODUCT} is", "p50", "p99",
         "one call repeated, rows/s", f"{PRODUCT} is", "CPU µs, server", "CPU µs, callers",
         "errors"],
    ]  # fmt: skip
    mine = [
        cell
        for cell in figures.samples
        if (cell.model, protocol_of(cell.spec.target)) == (model, protocol) and not cell.spec.client
    ]
    found = [cell for cell in mine if cell.scenario == "ClosedLoop"]
    shapes = list(dict.fromkeys((cell.callers, cell.connections) for cell in found))
    for cell in sorted(found, key=lambda each: shapes.index((each.callers, each.connections))):
        rate, p50, p99, num_errors = _columns(cell, figures)
        repeated = replace(cell, scenario="SameBytes")
        same = short(figures.of(repeated)), str(figures.gain(repeated) or NONE)
        cost = short(figures.cost_us(cell)) if rate != NONE else NONE
        used = median(sample.client_us_per_call for sample in figures.samples[cell])
        calls = short(used) if rate != NONE else NONE
        ratio = str(figures.gain(cell) or NONE)
        name = name_of(cell.spec)
        rows.append([name, shape_of(cell), rate, ratio, p50, p99, *same, cost, calls, num_errors])
    measured = {cell.spec for cell in found}
    missing = [
        skip.spec
        for skip in figures.results.skips
        if skip.model == model
        and skip.spec not in measured
        and protocol_of(skip.spec.target) == protocol
        and not skip.spec.client
    ]
    rows += [[name_of(spec), NOT_MEASURED, *[NONE] * 9] for spec in dict.fromkeys(missing)]
    settings = figures.results.settings
    note = (
        f"Medians of {settings['rounds']} rounds of {settings['seconds']:g} s or 300 calls, what "
        f"is longer. {PRODUCT} is: its rate over the row's, the median of the rounds' ratios, "
        "and the least to the greatest. CPU: processor time for a call, the callers' of their "
        f"busiest process. {_bytes_said(figures, mine)} A cell with errors has no rate; a "
        f"percentile with fewer than ten calls above it is left out.{_delays_said(mine)}"
    )
    return ReportTable(f"{model}, {protocol_said(protocol)}", note, rows)


def _bytes_said(figures: Figures, cells: Sequence[Cell]) -> str:
    """Say which calls repeat their bytes, and who sends them."""
    senders: dict[str, set[str]] = {"ClosedLoop": set(), "SameBytes": set()}
    for cell in cells:
        if cell.scenario in senders:
            senders[cell.scenario] |= {each.generator for each in figures.samples[cell]}
    if senders["ClosedLoop"] == {"h2load"}:
        return "All calls repeat one request, and h2load sends them."
    if "h2load" not in senders["SameBytes"]:
        return "Each call has other rows, but in the column of one call repeated."
    return (
        "Each call has other rows, and our own generator sends it; in the column of one call "
        "repeated, h2load does, which sends in bursts: two things differ."
    )


def _delays_said(cells: Sequence[Cell]) -> str:
    """Say which servers wait for a batch where one caller is alone."""
    waiting = dict.fromkeys(
        product_of(cell.spec.target)
        for cell in cells
        if (peer := PEERS.get(cell.spec.target)) and peer.waits_alone
    )
    if not waiting:
        return ""
    return (
        f" Of a lone call of {', '.join(waiting)} 2 ms are the wait for a batch, by the setting "
        "that these have here."
    )


def protocol_said(protocol: str) -> str:
    """Return a protocol's name for readers."""
    return _SAID[protocol]


def shape_of(cell: Cell) -> str:
    """Return connections times calls in flight on each; the callers alone where they were free."""
    return str(cell.callers) if not cell.connections else cell.in_flight


def swap(figures: Figures) -> ReportTable:
    """Lay out the same clients with this server and with Triton."""
    rows = [["client", "callers", f"{PRODUCT}, calls/s", "Triton, calls/s", f"{PRODUCT} is",
             "p50", "Triton's", "p99", "Triton's"]]  # fmt: skip
    for cell in figures.samples:
        protocol = protocol_of(cell.spec.target)
        if not cell.spec.client or cell.spec.target != OURS[protocol]:
            continue
        target = {"gRPC": "triton", "bytes": "triton-bytes"}.get(protocol, "")
        theirs = replace(cell, spec=replace(cell.spec, target=target))
        mine, other = _columns(cell, figures), _columns(theirs, figures)
        ratio = str(figures.gain(theirs) or NONE)
        pairs = [mine[1], other[1], mine[2], other[2]]
        rows.append([cell.spec.client, str(cell.callers), mine[0], other[0], ratio, *pairs])
    note = (
        "The same program before and after the server is changed: a thread for each caller of one "
        "process, with AsyncClient a task. Each repeats one call. With 64 callers most "
        "clients fill their own core."
    )
    return ReportTable("What a swap brings", note, rows)


def load(figures: Figures) -> ReportTable:
    """Lay out latencies by offered load."""
    rows = [["server", "protocol", "share of its rate", "offered/s", "p50", "p99", "p99.9",
             "rounds"]]  # fmt: skip
    for cell in figures.rounds:
        if cell.scenario == "Load":
            offered = median(sample.offered_per_s or 0.0 for sample in figures.valid(cell))
            tail = [_latency(figures, cell, share) for share in (0.5, 0.99, 0.999)]
            words = name_of(cell.spec), protocol_of(cell.spec.target), f"{cell.overload:.0%}"
            rows.append([*words, short(offered), *tail, _rounds_of(figures, cell)])
    note = (
        "Calls of one row arrive by themselves (Poisson), and latencies count from when they were "
        "due, sent or not. Shares are of the server's own rate in a closed loop of 256 callers "
        "just before. A round in which the generator sent late does not count; a share without "
        "one is left out."
    )
    return ReportTable("Under load", note, rows)


def costs(figures: Figures) -> ReportTable:
    """Lay out what each server takes: processor time, memory, and time to start."""
    rows = [["server", "model", "protocol", "connections × calls", "CPU seconds a million calls",
             "memory", "start to first answer"]]  # fmt: skip
    # The first of a model: later ones are of other scenarios.
    starts_ = {(each.spec, each.model): each for each in reversed(figures.results.starts)}
    largest: dict[tuple[Spec, str], Cell] = {}
    for cell in figures.rounds:
        if cell.scenario == "ClosedLoop" and not cell.spec.client and cell.callers <= _MANY:
            largest[cell.spec, cell.model] = cell
    for (spec, model), cell in largest.items():
        start = starts_.get((spec, model))
        took = seconds(start.startup_s) if start else NONE
        memory = start.memory_bytes if start else None
        used = f"{memory / 2**20:.0f} MiB" if memory else NONE  # nothing once it has ended
        cost = short(figures.cost_us(cell))
        words = name_of(spec), model, protocol_of(spec.target), shape_of(cell)
        rows.append([*words, cost, used, took])
    note = (
        "Processor time with 64 callers; memory (PSS) of all its processes after the last round. "
        "Of one start: the ready line of digit-serving, others' first answer, asked for each 0.2 s."
    )
    return ReportTable("Cost", note, rows)


def versions(results: Results) -> ReportTable:
    """Lay out the versions of other projects' servers and clients."""
    rows = [["environment", "versions"]]
    for name, packages in results.environment.get("peers", {}).items():
        words = ", ".join(f"{package} {version}" for package, version in packages.items())
        rows.append([name, words])
    return ReportTable("Versions", "Each has an environment of its own.", rows)


def is_cost(figures: Figures) -> bool:
    """Return whether runs in process were measured beside a server."""
    return any(cell.spec.target == IN_PROCESS for cell in figures.samples)


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


def _first(figures: Figures) -> str:
    return str(figures.base) if figures.base else NONE


def _is_headline(cell: Cell, figures: Figures) -> bool:
    """Keep the table narrow: of ClosedLoop and Offline the smallest and the largest size."""
    same = [c for c in figures.rounds if (c.spec, c.scenario) == (cell.spec, cell.scenario)]
    return cell.spec == figures.specs[0] and not cell.overload and cell in (min(same), max(same))


def _heading(cell: Cell, latency_slo_s: float) -> str:
    return {
        "SingleStream": "SingleStream, p90",
        "ClosedLoop": f"ClosedLoop, {cell.in_flight} callers",
        "NewHeaders": f"NewHeaders, {cell.in_flight} callers",
        "SameBytes": f"SameBytes, {cell.in_flight} callers",
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
    rows = [
        [
            "scenario",
            "target",
            "figure",
            f"× {_first(figures)}",
            *(f"p{100 * share:g}" for share in _TAIL),
            "CPU µs",
            "errors",
        ]
    ]
    tasks = list(dict.fromkeys(cell.task for cell in figures.rounds))
    for cell in sorted(figures.rounds, key=lambda cell: tasks.index(cell.task)):
        value = figures.of(cell) or 0.0
        if not cell.overload:
            figure = seconds(value) if cell.is_latency else f"{short(value)}/s"
            tail = [_latency(figures, cell, share) for share in _TAIL]
            ratio, cost = figures.speedup(cell), short(figures.cost_us(cell))
            tail = [NONE] * len(_TAIL) if cell.scenario == "Server" else tail
            rows.append([cell.task, str(cell.spec), figure, str(ratio or NONE), *tail, cost, "0"])
    for cell in figures.samples:
        if num_errors := figures.errors(cell):
            blank = [NONE] * (len(rows[0]) - 3)
            rows.append([cell.task, str(cell.spec), *blank, str(num_errors)])
    note = (
        "Calls of one row where no size is named; C × M: M in flight on each of C connections. "
        "Medians of the rounds; ratios with the least to the greatest of them. CPU: the target's "
        "processor time for a row. A cell with errors has no figure."
    )
    return ReportTable("All that was measured", note, rows)


def serving_cost(figures: Figures) -> ReportTable:
    """Lay out what a server adds to a model, by the rows of a call and the callers."""
    rows = [
        ["rows a call", "callers", "served rows/s", "p50", "p99", "errors",
         "in process rows/s", "p50", "p99", "errors", "served / in process"],
    ]  # fmt: skip
    served = [cell for cell in figures.samples if cell.spec.target != IN_PROCESS]
    for cell in sorted(served, key=lambda cell: (cell.batch, cell.callers)):
        alone = replace(cell, spec=Spec(target=IN_PROCESS))
        if cell.scenario != "ClosedLoop" or alone not in figures.samples:
            continue
        ratio = figures.speedup(cell)
        columns = (*_columns(cell, figures), *_columns(alone, figures))
        rows.append([str(cell.batch), str(cell.callers), *columns, str(ratio or NONE)])
    note = (
        "Served: h2-infer, called over gRPC, one batch for several callers where the graph allows "
        "it. In process: bare ONNX Runtime on the same cores, a thread for each caller, no batches "
        f"of several. Medians of {figures.results.settings['rounds']} rounds. A cell with errors "
        "has no rate."
    )
    return ReportTable("What serving costs", note, rows)


def _columns(cell: Cell, figures: Figures) -> list[str]:
    """Return a cell's rate, p50, p99 and errors."""
    value, num_errors = figures.of(cell), figures.errors(cell)
    if value is None:
        return [NONE, NONE, NONE, f"{num_errors}" if cell in figures.samples else NONE]
    quantiles = (_latency(figures, cell, share) for share in (0.5, 0.99))
    return [short(value), *quantiles, f"{num_errors}"]


def _latency(figures: Figures, cell: Cell, share: float) -> str:
    found = figures.latency_s(cell, share)
    return NONE if found is None else seconds(found)


def overload(figures: Figures) -> ReportTable:
    """Lay out how many of too many calls are answered in time, and how the others end."""
    rows = [
        [
            "target",
            "offered",
            "offered/s",
            "sent/s",
            "in time/s",
            "share",
            "refused/s",
            "late/s",
            "failed/s",
            "rounds",
        ]
    ]
    for cell in figures.rounds:
        if cell.scenario == "Overload":
            valid = figures.valid(cell)
            shares = [
                cell.overload * _per_s(each, Outcome.IN_TIME) / _per_s(each, Outcome.DUE)
                for each in valid
            ]
            share = f"{median(shares):.0%}"
            if len(shares) > 1:
                share += f", {min(shares):.0%} to {max(shares):.0%}"
            rates = [short(median(_per_s(s, outcome) for s in valid)) for outcome in _OUTCOMES]
            words = name_of(cell.spec), f"{cell.overload:g} ×"
            ends = [share, *rates[3:], _rounds_of(figures, cell)]
            rows.append([*words, *rates[:3], *ends])
    note = (
        "Offered: as a multiple of the rate of a closed loop of 256 callers just before. Each "
        "caller gives up 50 ms after its call was due, and resets the stream. In time: "
        "answered by then. Share: of the closed loop's rate. Refused: by a status in time. Late: "
        "the rest of those sent. Medians of the rounds that count."
    )
    return ReportTable("Overload", note, rows)


def _rounds_of(figures: Figures, cell: Cell) -> str:
    """Say how many of a cell's rounds count."""
    return f"{len(figures.rounds[cell])} of {figures.results.settings['rounds']}"


def _per_s(sample: Sample, outcome: str) -> float:
    return sample.outcomes.get(outcome, 0) / sample.duration_s


def starts(figures: Figures) -> ReportTable:
    """Lay out startup time and memory."""
    rows = [["target", "start to first answer", "memory"]]
    rows += [
        [
            f"{start.model}, {start.spec}" if start.model else str(start.spec),
            seconds(start.startup_s),
            f"{(start.memory_bytes or 0) / 2**20:.0f} MiB",
        ]
        for start in figures.results.starts
    ]
    return ReportTable("Start and memory", "Memory (PSS) after the last round.", rows)


def left_out(figures: Figures) -> ReportTable:
    """Lay out the targets and runs without a figure, and why."""
    rows = [["target or cell", "runs", "why, the first time"]]
    rows += [
        [f"{skip.model}, {skip.spec}" if skip.model else str(skip.spec), NONE, skip.reason]
        for skip in figures.results.skips
    ]
    for cell, samples in figures.samples.items():
        reasons = [sample.invalid for sample in samples if sample.invalid]
        if reasons:
            rows.append([str(cell), f"{len(reasons)} of {len(samples)}", reasons[0]])
    return ReportTable(NOT_MEASURED.capitalize(), "Nothing is extrapolated.", rows)
