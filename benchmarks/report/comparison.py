"""Compares two results files of one machine: do their ratios agree, and what changed?"""

from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median

from benchmarks.report.figures import Key, Rounds, figures, specs_of, speedup
from benchmarks.report.stats import Interval, unpaired_ratio
from benchmarks.report.table import Table, interval
from benchmarks.run import environment
from benchmarks.run.result_file import Results, UnusableResults
from benchmarks.targets.target import Spec


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One cell in both files."""

    key: Key
    change: Interval
    """B over A: how many times as fast, drift of the machine included."""
    ratios: tuple[Interval, Interval] | None
    """How many times as fast as the first target, in A and in B; None for that target itself."""

    @property
    def agrees(self) -> bool:
        """Whether the ranges of the two ratios overlap."""
        return self.ratios is not None and self.ratios[0].overlaps(self.ratios[1])


def compare(a: Results, b: Results) -> list[Row]:
    """Compare every cell that both files have.

    Raises:
        UnusableResults: they come from unlike machines, or share no cell.
    """
    unlike = environment.differences(a.environment, b.environment)
    if unlike:
        raise UnusableResults(f"unlike machines: {'; '.join(unlike)}")
    if a.latency_slo_s != b.latency_slo_s:
        raise UnusableResults(f"unlike objectives: {a.latency_slo_s:g} and {b.latency_slo_s:g} s")
    in_a, in_b = figures(a), figures(b)
    rows = [_row(key, specs_of(a)[0], in_a, in_b) for key in in_a if key in in_b]
    if not rows:
        raise UnusableResults("the two have no target and scenario in common")
    return rows


def _row(key: Key, baseline: Spec, a: Mapping[Key, Rounds], b: Mapping[Key, Rounds]) -> Row:
    old, new = list(a[key].values()), list(b[key].values())
    change = unpaired_ratio(old, new) if key.is_latency else unpaired_ratio(new, old)
    base = key.with_spec(baseline)
    in_a, in_b = speedup(key, base, a), speedup(key, base, b)
    ratios = (in_a, in_b) if in_a and in_b and key != base else None
    return Row(key=key, change=change, ratios=ratios)


def table(rows: list[Row], baseline: str) -> Table:
    """Lay the comparison out."""
    lines = [["cell", f"× {baseline} in A", "in B", "agree", "B is as fast as A"]]
    for row in rows:
        ratios = [interval(ratio) for ratio in row.ratios] if row.ratios else ["1", "1"]
        verdict = ("yes" if row.agrees else "NO") if row.ratios else ""
        lines.append([str(row.key), *ratios, verdict, interval(row.change)])
    typical = median(abs(row.change.estimate - 1) for row in rows)
    note = (
        "With the least to the greatest round. The last column includes the machine's drift "
        f"(here {typical:.0%} at the median); the ratios before it do not."
    )
    return Table("Comparison", note, lines)
