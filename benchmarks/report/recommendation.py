"""Names what to run for a rate and a latency objective, from what was measured, nothing else."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from benchmarks.report.figures import cost_us
from benchmarks.report.table import Table, seconds, short
from benchmarks.run.result_file import Results, Sample
from benchmarks.targets.clients import CLIENTS
from benchmarks.targets.commands import ENGINE_KINDS
from benchmarks.targets.target import Spec

_NO_DEPLOYMENT = {
    "null", "raw", "echo", "echo-grpcio", *CLIENTS,
    *(f"{target}-{kind}" for target in ("engine", "h2") for kind in ENGINE_KINDS),
}  # fmt: skip
_EMBEDDED = ("engine", "classifier", "classifier-async", "keras", "tf-function")
PLACES = ("served", "embedded")
"""Behind an address, or in the caller's own process."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A target, with a number of images a call, that was seen to keep to an objective."""

    spec: Spec
    batch: int
    images_per_s: float
    """The highest rate at which it did: the median of the rounds' highest."""
    p99_s: float
    """At that rate."""
    cost_us: float | None
    """The target's processor time for an image."""


def choices(
    results: Results, latency_slo_s: float, place: str = "served", batch: int | None = None
) -> list[Choice]:
    """Find for each target and batch the highest rate that kept p99 within an objective.

    Closed loops and open loops both count, each rate as it was achieved.

    Args:
        results: what was measured.
        latency_slo_s: what p99 may not exceed.
        place: one of PLACES.
        batch: images in each of the callers' calls; None for any.
    """
    best: dict[tuple[Spec, int], dict[int, Sample]] = {}
    for sample in sorted(results.samples, key=lambda each: each.images_per_s):
        target, is_asked = sample.spec.target, batch in (None, sample.batch)
        is_there = target not in _NO_DEPLOYMENT and (target in _EMBEDDED) == (place == "embedded")
        if is_asked and is_there and not sample.invalid and sample.holds(latency_slo_s):
            best.setdefault((sample.spec, sample.batch), {})[sample.round] = sample
    return [
        Choice(
            spec=spec, batch=images, cost_us=cost_us(by_round.values()),
            images_per_s=median(sample.images_per_s for sample in by_round.values()),
            p99_s=median(sample.latency.quantile(0.99) for sample in by_round.values()),
        )
        for (spec, images), by_round in best.items()
    ]  # fmt: skip


def rank(found: list[Choice], rate: float) -> tuple[list[Choice], bool]:
    """Put what suffices first, the cheapest in processor time at its head.

    Args:
        found: what kept to the objective.
        rate: images a second that are needed.

    Returns:
        What suffices and True; or if nothing does, what is fastest, and False.
    """
    enough = [choice for choice in found if choice.images_per_s >= rate]
    if enough:
        return sorted(enough, key=lambda choice: choice.cost_us or float("inf")), True
    return sorted(found, key=lambda choice: -choice.images_per_s), False


def table(found: Sequence[Choice], limit: int = 5) -> Table:
    """Lay choices out."""
    rows = [["target", "device", "precision", "workers", "images a call", "images/s", "p99",
             "µs of CPU an image"]]  # fmt: skip
    rows += [
        [each.spec.target, each.spec.device, each.spec.precision, str(each.spec.workers),
         str(each.batch), f"{each.images_per_s:,.0f}", seconds(each.p99_s), short(each.cost_us)]
        for each in found[:limit]
    ]  # fmt: skip
    return Table("Recommendation", "", rows)
