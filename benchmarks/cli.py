"""The commands: run, compare, plot, recommend."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from time import perf_counter
from types import ModuleType
from typing import Any

from benchmarks.arguments import RESULTS, parser
from benchmarks.load.cores import split_cores
from benchmarks.load.network import Generator
from benchmarks.report import comparison, recommendation
from benchmarks.report.figures import specs_of
from benchmarks.run import environment, footprint, result_file
from benchmarks.run.result_file import Results, UnusableResults
from benchmarks.run.runner import measure, setting_of
from benchmarks.run.scenarios import NAMES
from benchmarks.run.suites import SUITES, Suite, specs
from benchmarks.targets.target import Spec
from commandline import extras
from commandline.parser import blame
from serving.errors import DigitsError
from serving.model.repository import find_root

DONE, FAILED, UNUSABLE = 0, 1, 2
"""Exit codes: done; failed; the command or a file can't be used."""

EXTRAS = {
    "matplotlib": "bench",
    "packaging": "bench",
    "onnxruntime": "serve",
    "uvloop": "serve",
    "ngh2": "serve",
    "tensorflow": "train",
    "keras": "train",
}
"""What the base installation lacks, and the extra that brings it."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(argv)
    try:
        return COMMANDS[options.command](options)
    except (UnusableResults, DigitsError) as err:
        return _fail(blame(str(err), options.variables), UNUSABLE)
    except ModuleNotFoundError as err:
        return _fail(extras.advice(err, EXTRAS), UNUSABLE)
    except OSError as err:
        return _fail(str(err), FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted", FAILED)


def _run(options: argparse.Namespace) -> int:
    """Measure, keep, report."""
    if not hasattr(os, "sched_setaffinity"):
        raise UnusableResults("run needs Linux: it binds to cores and reads /proc; plot does not")
    extras.require("matplotlib", "packaging", "onnxruntime")
    suite, begin_s = suite_of(options), perf_counter()
    target_cores, generator_cores = split_cores()
    if options.share_cores:
        target_cores = generator_cores = sorted(os.sched_getaffinity(0))
    suite = replace(suite, rules=replace(suite.rules, num_cores=len(target_cores)))
    models = options.models or find_root("digits", Path("models"))
    output = options.output or RESULTS / "local" / f"{suite.name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    with Generator(generator_cores, options.generator) as generator:
        addresses, checkouts = addresses_of(options), checkouts_of(options)
        setting = setting_of(
            models, options.artifacts, target_cores, addresses, checkouts, generator
        )
        cores = {"target": len(target_cores), "generator": len(generator_cores)}
        measured = _empty(suite, options, environment.describe(models, cores))
        measure(suite, setting, measured, _Progress())
    measured.save(output)
    print(f"\n{perf_counter() - begin_s:.0f} s; kept in {output}")
    return _report(measured, output)


def _empty(suite: Suite, options: argparse.Namespace, machine: Mapping[str, Any]) -> Results:
    """Make results that say how and where, and what does not change from round to round."""
    return Results(
        suite=suite.name,
        date=datetime.now(UTC).date().isoformat(),
        environment=machine,
        settings={
            "rounds": suite.rounds,
            "seconds": suite.rules.seconds,
            "latency_slo_s": suite.rules.latency_slo_s,
            "arrivals": suite.rules.arrivals,
        },
        install=footprint.install_bytes(),
        training=footprint.trainings(options.artifacts),
    )


def suite_of(options: argparse.Namespace) -> Suite:
    """Take the suite that was named and put in what other options say."""
    suite = SUITES[options.suite]
    if options.targets or options.device or options.precision or options.workers:
        suite = replace(suite, name="custom", specs=_specs(suite.specs, options), extra=())
    if options.scenarios:
        wanted = [name for name in NAMES if name in options.scenarios]
        extra = [cell for cell in suite.extra if cell.scenario in wanted]
        suite = replace(suite, scenarios=wanted, extra=extra)
    given = {name: value for name in ("callers", "batches", "rounds")
             if (value := getattr(options, name))}  # fmt: skip
    rules = {name: value for name, value in (
        ("seconds", options.seconds), ("latency_slo_s", options.latency_slo),
        ("arrivals", options.arrivals)) if value}  # fmt: skip
    return replace(suite, **given, rules=replace(suite.rules, **rules))


def _specs(known: Sequence[Spec], options: argparse.Namespace) -> list[Spec]:
    """Combine what the options name; what they don't is as in the suite, for its own targets."""
    usual = [Spec(target=name) for name, _ in options.targets] if options.targets else known
    chosen = specs(
        dict.fromkeys(spec.target for spec in usual),
        options.device or dict.fromkeys(spec.device for spec in usual),
        options.precision or dict.fromkeys(spec.precision for spec in usual),
        options.workers or dict.fromkeys(spec.workers for spec in usual),
        checkouts_of(options),
    )
    if not chosen:
        raise UnusableResults("nothing to measure: no target has these settings")
    return chosen


def addresses_of(options: argparse.Namespace) -> dict[str, str]:
    """Return the addresses of the targets that were named by one."""
    return {
        name: where for name, where in options.targets or () if isinstance(where, str) and where
    }


def checkouts_of(options: argparse.Namespace) -> dict[str, Path]:
    """Return the folders of the targets that are our server in another checkout."""
    return {name: where for name, where in options.targets or () if isinstance(where, Path)}


class _Progress:
    """Rewrites one line on a terminal; elsewhere prints a line for each step."""

    def __init__(self) -> None:
        self._begin_s = perf_counter()

    def __call__(self, step: str) -> None:
        line = f"{perf_counter() - self._begin_s:5.0f} s  {step}"
        if sys.stdout.isatty():
            print(f"\r\033[K{line}", end="", flush=True)
        else:
            print(line, flush=True)


def _report(measured: Results, output: Path) -> int:
    from benchmarks.report.sections import tables

    report = _import_report()
    written = report.write(measured, output)
    for table in tables(measured):
        print(f"\n{table.title}. {table.note}\n{table.text()}")
    print(f"\nlook at {written[1]}")
    return DONE


def _import_report() -> ModuleType:
    """Import what draws, which takes a second; what matplotlib keeps goes to our own cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "digit-serving"
    os.environ.setdefault("MPLCONFIGDIR", str(cache / "matplotlib"))
    return import_module("benchmarks.report.files")


def _compare(options: argparse.Namespace) -> int:
    a, b = result_file.load(options.a), result_file.load(options.b)
    rows = comparison.compare(a, b)
    made = comparison.table(rows, str(specs_of(a)[0]))
    judged = [row for row in rows if row.ratios]
    print(f"{made.text()}\n\n{made.note}")
    print(f"{sum(row.agrees for row in judged)} of {len(judged)} ratios agree")
    return DONE


def _plot(options: argparse.Namespace) -> int:
    report = _import_report()
    kept = result_file.load(options.results)
    if not options.readme:
        print(*report.write(kept, options.results), sep="\n")
        return DONE
    if options.check:
        if report.readme_section(kept) in options.readme.read_text("utf-8"):
            return DONE
        return _fail(f"{options.readme} differs from {options.results}: plot --readme", FAILED)
    changed = report.update_readme(options.readme, kept)
    print(f"{options.readme} {'updated' if changed else 'is up to date'}")
    return DONE


def _recommend(options: argparse.Namespace) -> int:
    kept = result_file.load(options.results)
    found = recommendation.choices(kept, options.latency_slo, options.place, options.batch)
    ranked, suffices = recommendation.rank(found, options.rate)
    asked = f"{options.rate:,.0f} images/s with p99 <= {options.latency_slo * 1e3:g} ms"
    for skip in kept.skips:
        print(f"{skip.spec}: not measured: {skip.reason}")
    if not ranked:
        return _fail(f"nothing measured keeps to {options.latency_slo * 1e3:g} ms", FAILED)
    if suffices:
        print(f"for {asked}, the cheapest first:")
    else:
        print(f"nothing measured reaches {asked}; the fastest that keep to it:")
    print(recommendation.table(ranked).text())
    return DONE if suffices else FAILED


def _fail(reason: str, code: int) -> int:
    """Say what went wrong, on stderr."""
    print(f"digits-bench: {reason}", file=sys.stderr)
    return code


COMMANDS = {"run": _run, "compare": _compare, "plot": _plot, "recommend": _recommend}
