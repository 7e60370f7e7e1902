"""The small tables: what an image, a start, an install and a training cost; what is missing."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace as replaced
from statistics import median

from benchmarks.report.figures import Key, Rounds, grouped
from benchmarks.report.table import Table, seconds, short
from benchmarks.run.result_file import Results, Sample


def cost_us(samples: Sequence[Sample]) -> float | None:
    """Return the target's processor time for an image, in microseconds."""
    costs = [s.cpu_us_per_call / s.batch for s in samples if s.cpu_us_per_call and not s.invalid]
    return median(costs) if costs else None


def cost(results: Results, scenario: str, what: str, size: Callable[[Key], int]) -> Table:
    """Lay out the processor time of an image by size."""
    groups = {key: v for key, v in grouped(results.samples).items() if key.scenario == scenario}
    sizes = sorted({size(key) for key in groups})
    rows = [["target", *map(str, sizes)]] if groups else []
    for spec in dict.fromkeys(key.spec for key in groups):
        by_size = {size(key): cost_us(v) for key, v in groups.items() if key.spec == spec}
        costs = [by_size.get(each) for each in sizes]
        if any(costs):  # a server by address hides what it costs
            rows.append([str(spec), *("–" if cost is None else f"{cost:.3g}" for cost in costs)])
    return Table(f"Processor time an image, by {what}", "Microseconds of the target's.", rows)


def workers(results: Results, found: Mapping[Key, Rounds]) -> Table:
    """Lay out rate and cost by number of workers."""
    rows = [["target", "callers", "workers", "images/s", "µs of CPU an image"]]
    samples = grouped(results.samples)
    several = {replaced(key.spec, workers=1) for key in found if key.spec.workers > 1}
    for key in sorted(found):
        alone = replaced(key.spec, workers=1)
        if key.scenario == "ClosedLoop" and alone in several:
            rate, cost = short(median(found[key].values())), cost_us(samples[key]) or 0
            sizes = (str(key.callers), str(key.spec.workers))
            rows.append([str(alone), *sizes, rate, f"{cost:.3g}"])
    return Table("Workers", f"On {results.environment['cores_for']['target']} core(s).", rows)


def starts(results: Results) -> Table:
    """Lay out startup time and memory."""
    rows = [["target", "start to first answer", "memory"]]
    rows += [
        [str(start.spec), seconds(start.startup_s), f"{(start.memory_bytes or 0) / 2**20:.0f} MiB"]
        for start in results.starts
    ]
    return Table("Start and memory", "Memory (PSS) after the last round.", rows)


def install(results: Results) -> Table:
    """Lay out the sizes of installations."""
    rows = [[name, f"{size / 1e6:,.0f} MB"] for name, size in results.install.items()]
    return Table("Installation", "Unpacked, all dependencies.", [["extra", "size"], *rows])


def training(results: Results) -> Table:
    """Lay out time and accuracy by recipe."""
    rows = [
        [f"{t['recipe']}, {t['device']}", f"{t['seconds']:.0f} s", f"{t['accuracy']:.2%}"]
        for t in results.training
    ]
    return Table("Training", "", [["recipe", "time", "test accuracy"], *rows])


def skipped(results: Results) -> Table:
    """Tell what could not be measured, and why."""
    rows = [[str(skip.spec), skip.reason] for skip in results.skips]
    return Table("Not measured", "Nothing is extrapolated.", [["target", "why"], *rows])


def invalid(results: Results) -> Table:
    """Tell which runs were left out, and why."""
    return Table("Left out", "Runs that say nothing of the target.", [
        ["cell", "runs", "why, the first time"], *_invalid_rows(results)])  # fmt: skip


def _invalid_rows(results: Results) -> Iterator[list[str]]:
    for key, samples in grouped(results.samples).items():
        reasons = [sample.invalid for sample in samples if sample.invalid]
        if reasons:
            yield [str(key), f"{len(reasons)} of {len(samples)}", reasons[0]]
