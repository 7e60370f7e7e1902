"""The tables of the report, as rows of text; markdown and HTML are made of the same ones."""

from collections.abc import Mapping, Sequence
from dataclasses import replace as replaced
from statistics import median

from benchmarks.report import costs, loads
from benchmarks.report.figures import Key, Rounds, curve, figures, grouped, specs_of, speedup
from benchmarks.report.stats import crossover, interpolate
from benchmarks.report.table import Table, interval, seconds, short
from benchmarks.run.result_file import Results, Sample
from benchmarks.targets.target import Spec

NOT_MEASURED = "not measured"


def tables(results: Results) -> list[Table]:
    """Make every table that the results have something for."""
    found = figures(results)
    made = [
        summary(results, found),
        loads.closed_loops(results, found),
        loads.overload(results, found),
        crossovers(results, found),
        composition(results, found),
        costs.cost(results, "ClosedLoop", "callers", lambda key: key.callers),
        costs.cost(results, "Offline", "images a call", lambda key: key.batch),
        costs.workers(results, found),
        costs.starts(results),
        costs.install(results),
        costs.training(results),
        costs.skipped(results),
        costs.invalid(results),
    ]
    return [table for table in made if len(table.rows) > 1]


def summary(results: Results, found: Mapping[Key, Rounds] | None = None) -> Table:
    """Every target's figures, and how many times as fast as the first one it is."""
    found = figures(results) if found is None else found
    specs = specs_of(results)
    cells = [key for key in found if key.spec == specs[0] and _is_headline(key, found)]
    if not cells:
        return Table("Targets", "", [])
    asked = {key.spec for key in grouped(results.samples) if key.with_spec(specs[0]) in cells}
    skipped = dict.fromkeys(skip.spec for skip in results.skips if skip.spec not in specs)
    rows = [["target", *(_heading(key, results) for key in cells)]]
    rows += [
        [str(spec), *(_entry(key.with_spec(spec), key, found) for key in cells)]
        for spec in specs
        if spec in asked
    ]
    rows += [[str(spec), *([NOT_MEASURED] * len(cells))] for spec in skipped]
    return Table(
        "Targets",
        f"Medians of {results.settings['rounds']} interleaved rounds; in brackets how many times "
        f"as fast as {specs[0]}: the median of the rounds' ratios, and the least to the greatest "
        f"of {results.settings['rounds']} rounds. "
        "Rates drift by tens of percent from run to run on shared machines: trust the ratios.",
        rows,
    )


def _is_headline(key: Key, found: Mapping[Key, Rounds]) -> bool:
    """Keep the summary narrow: of ClosedLoop and Offline the smallest and the largest size."""
    same = [k for k in found if k.spec == key.spec and k.scenario == key.scenario]
    return not key.overload and key in (min(same), max(same))


def _heading(key: Key, results: Results) -> str:
    slo_ms = results.latency_slo_s * 1e3
    return {
        "SingleStream": "SingleStream, p90",
        "MultiStream": "MultiStream, p99",
        "ClosedLoop": f"ClosedLoop, {key.in_flight} callers",
        "Server": f"Server, p99 ≤ {slo_ms:g} ms",
        "Offline": f"Offline, {key.batch} a call",
    }[key.scenario]


def _entry(key: Key, baseline: Key, found: Mapping[Key, Rounds]) -> str:
    if key not in found:
        return NOT_MEASURED
    value = median(found[key].values())
    text = seconds(value) if key.is_latency else f"{short(value)}/s"
    ratio = speedup(key, baseline, found) if key != baseline else None
    return text if ratio is None else f"{text} ({interval(ratio)})"


def crossovers(results: Results, found: Mapping[Key, Rounds]) -> Table:
    """The batch size from which CUDA is the faster device, for each target measured on both."""
    specs = sorted({*specs_of(results), *(skip.spec for skip in results.skips)})
    rows = [["target", "CUDA overtakes the CPU at"]]
    rows += [
        [str(replaced(spec, device="cpu")), _crossover(spec, found)]
        for spec in specs
        if spec.device == "cuda"
    ]
    note = "Images a call in Offline, interpolated between measured sizes and never beyond them."
    return Table("Crossover", note, rows)


def _crossover(cuda: Spec, found: Mapping[Key, Rounds]) -> str:
    on_cpu = dict(zip(*curve(found, replaced(cuda, device="cpu"), "Offline", _batch), strict=True))
    on_cuda = dict(zip(*curve(found, cuda, "Offline", _batch), strict=True))
    sizes = sorted(set(on_cpu) & set(on_cuda))
    if not sizes:
        return NOT_MEASURED
    size = crossover(sizes, [on_cpu[n] for n in sizes], [on_cuda[n] for n in sizes])
    return f"no size up to {sizes[-1]}" if size is None else f"{size:.0f}"


def _batch(key: Key) -> int:
    return key.batch


def composition(results: Results, found: Mapping[Key, Rounds]) -> Table:
    """Compare our servers with what their parts allow: 1 / (1 / transport + 1 / run)."""
    rows = [["images/s", "runs of", "measured", "1/(1/echo + 1/run)", "share", "bare"]]
    for key, samples in grouped(results.samples).items():
        is_comparable = key.spec.workers == results.environment["cores_for"]["target"] == 1
        if is_comparable and key.scenario in ("ClosedLoop", "Offline") and key.spec.target in _ECHO:
            row = _parts(key, mean_batch(samples), found)
            rows += [row] if row else []
    note = (
        "On one core. Share: of what the transport and runs, of the mean size that formed, would "
        "allow if each found its caches warm. Bare: the loop that has the transport and the model "
        "and nothing else, in the same rounds."
    )
    return Table("What the parts allow", note, rows)


_ECHO = {"h2": "echo", "native": "echo", "grpcio": "echo-grpcio"}
"""What prices the transport of each of our servers; "native" is what h2 replaced."""


def _parts(key: Key, formed: float, found: Mapping[Key, Rounds]) -> list[str] | None:
    echo = key.with_spec(Spec(target=_ECHO[key.spec.target]))
    sizes, rates = curve(found, replaced(key.spec, target="engine"), "Offline", _batch)
    if not {key, echo} <= set(found) or not sizes or not sizes[0] <= formed <= sizes[-1]:
        return None
    measured, transport = median(found[key].values()), median(found[echo].values())
    allowed = 1 / (1 / transport + 1 / interpolate(formed, sizes, rates))
    bare = found.get(key.with_spec(replaced(key.spec, target="bare")), {})
    return [
        str(key), f"{formed:.1f}", short(measured), short(allowed), f"{measured / allowed:.0%}",
        short(median(bare.values())) if bare and echo.spec.target == "echo" else "–",
    ]  # fmt: skip


def mean_batch(samples: Sequence[Sample]) -> float:
    """Return the mean number of images in a run; 0 if the target doesn't tell."""
    runs = sum(sum(sample.batch_sizes.values()) for sample in samples)
    return sum(sample.num_calls * sample.batch for sample in samples) / runs if runs else 0.0
