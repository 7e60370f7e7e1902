"""Names what to run for a rate and a latency objective, from what was measured, nothing else."""

from collections.abc import Iterator
from dataclasses import dataclass
from statistics import median

from benchmarks.report.costs import cost_us
from benchmarks.report.figures import grouped
from benchmarks.report.table import Table, seconds
from benchmarks.run.result_file import Results, Sample
from benchmarks.targets.target import Spec

_NO_DEPLOYMENT = ("null", "echo", "echo-grpcio")
_EMBEDDED = ("engine", "classifier", "keras", "tf-function")
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
    by_batch: dict[tuple[Spec, int], list[Sample]] = {}
    for key, samples in grouped(results.samples).items():
        if key.spec.target in _NO_DEPLOYMENT or batch not in (None, key.batch):
            continue
        if (key.spec.target in _EMBEDDED) == (place == "embedded"):
            by_batch.setdefault((key.spec, key.batch), []).extend(samples)
    return [
        choice
        for (spec, images), samples in by_batch.items()
        for choice in _choice(spec, images, samples, latency_slo_s)
    ]


def _choice(
    spec: Spec, batch: int, samples: list[Sample], latency_slo_s: float
) -> Iterator[Choice]:
    best: dict[int, Sample] = {}
    for sample in samples:
        if not sample.invalid and sample.holds(latency_slo_s):
            known = best.get(sample.round)
            if known is None or sample.images_per_s > known.images_per_s:
                best[sample.round] = sample
    if best:
        chosen = list(best.values())
        yield Choice(
            spec=spec,
            batch=batch,
            images_per_s=median(sample.images_per_s for sample in chosen),
            p99_s=median(sample.latency.quantile(0.99) for sample in chosen),
            cost_us=cost_us(chosen),
        )


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


def table(found: list[Choice], limit: int = 5) -> Table:
    """Lay choices out."""
    rows = [["target", "device", "precision", "workers", "images a call", "images/s", "p99",
             "µs of CPU an image"]]  # fmt: skip
    rows += [
        [choice.spec.target, choice.spec.device, choice.spec.precision, str(choice.spec.workers),
         str(choice.batch), f"{choice.images_per_s:,.0f}", seconds(choice.p99_s),
         "–" if choice.cost_us is None else f"{choice.cost_us:.3g}"]
        for choice in found[:limit]
    ]  # fmt: skip
    return Table("Recommendation", "", rows)
