"""The tables of loads: closed loops with their tails, and overload."""

from collections.abc import Mapping
from statistics import median

from benchmarks.load.trace import Outcome
from benchmarks.report.figures import Key, Rounds, grouped, specs_of, speedup
from benchmarks.report.table import Table, interval, seconds, short
from benchmarks.run.result_file import Results, Sample


def closed_loops(results: Results, found: Mapping[Key, Rounds]) -> Table:
    """Lay out every closed loop: its rate, also against the first target's, and its tail."""
    samples = grouped(results.samples)
    first = next(iter(specs_of(results)), None)
    rows = [["target", "in flight", "images/s", f"× {first}", "p50", "p99"]]
    for key in found:
        if first is None or key.scenario != "ClosedLoop":
            continue
        ratio = speedup(key, key.with_spec(first), found) if key.spec != first else None
        valid = [sample.latency for sample in samples[key] if not sample.invalid]
        rows.append([
            str(key.spec), key.in_flight, short(median(found[key].values())),
            interval(ratio) if ratio else "–",
            *(seconds(median(each.quantile(q) for each in valid)) for q in (0.5, 0.99)),
        ])  # fmt: skip
    note = (
        "Calls of one image; C × M: M in flight on each of C connections, or on each of C streams. "
        "Medians of the rounds; ratios with the least to the greatest of them."
    )
    return Table("Closed loops", note, rows)


def overload(results: Results, found: Mapping[Key, Rounds]) -> Table:
    """Lay out what is answered in time of more than can be, and what becomes of the rest."""
    samples = grouped(results.samples)
    rows = [["target", "callers", "offered", "offered/s", "sent/s", "in time/s", "share",
             "refused/s", "late/s", "failed/s"]]  # fmt: skip
    for key in found:
        if key.overload:
            valid = [sample for sample in samples[key] if not sample.invalid]
            share = key.overload * median(
                _per_s(each, Outcome.IN_TIME) / _per_s(each, Outcome.DUE) for each in valid
            )
            due, sent, in_time, *others = (
                short(median(_per_s(each, outcome) for each in valid)) for outcome in _COLUMNS
            )
            callers = "reset only" if key.scenario == "OverloadReset" else "grpc-timeout"
            offered = [f"{key.overload:g} ×", due, sent]
            rows.append([str(key.spec), callers, *offered, in_time, f"{share:.0%}", *others])
    note = (
        "Offered: as a multiple of what a closed loop of 8 × 32 reached just before. Each caller "
        "gives up 50 ms after its call was due, and resets the stream. In time: answered by then. "
        "Share: of the closed loop's rate. Refused: by a status in time. Late: what else was sent. "
        "Medians of the rounds."
    )
    return Table("Overload", note, rows)


_COLUMNS = (
    Outcome.DUE, Outcome.SENT, Outcome.IN_TIME, Outcome.REFUSED, Outcome.LATE, Outcome.FAILED,
)  # fmt: skip


def _per_s(sample: Sample, outcome: str) -> float:
    return sample.outcomes.get(outcome, 0) / sample.duration_s
