"""Compares two results files of one machine: do their ratios agree, and what changed?"""

from dataclasses import dataclass
from statistics import median

from benchmarks.report.figures import Figures
from benchmarks.report.ratios import Interval, unpaired_ratio
from benchmarks.report.table import Table
from benchmarks.run import environment
from benchmarks.run.cell import Cell
from benchmarks.run.result_file import Results, UnusableResults


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One cell in both files."""

    cell: Cell
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
    in_a, in_b, rows = Figures(a), Figures(b), []
    for cell in in_a.rounds:
        if cell in in_b.rounds:
            old, new = (list(each.rounds[cell].values()) for each in (in_a, in_b))
            change = unpaired_ratio(old, new) if cell.is_latency else unpaired_ratio(new, old)
            ratio_a, ratio_b = in_a.speedup(cell), in_b.speedup(cell, in_a.specs[0])
            ratios = (ratio_a, ratio_b) if ratio_a and ratio_b else None
            rows.append(Row(cell=cell, change=change, ratios=ratios))
    if not rows:
        raise UnusableResults("the two have no target and scenario in common")
    return rows


def table(rows: list[Row], baseline: str) -> Table:
    """Lay the comparison out."""
    lines = [["cell", f"× {baseline} in A", "in B", "agree", "B is as fast as A"]]
    for row in rows:
        ratios = [str(ratio) for ratio in row.ratios or ("1", "1")]
        verdict = ("yes" if row.agrees else "NO") if row.ratios else ""
        lines.append([str(row.cell), *ratios, verdict, str(row.change)])
    typical = median(abs(row.change.estimate - 1) for row in rows)
    note = (
        "With the least to the greatest round. The last column includes the machine's drift "
        f"(here {typical:.0%} at the median); the ratios before it do not."
    )
    return Table("Comparison", note, lines)
