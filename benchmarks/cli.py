"""The commands: run, verify, compare, plot, recommend."""

import argparse
import os
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from time import perf_counter
from types import ModuleType

from benchmarks.arguments import parser
from benchmarks.report import comparison, recommendation
from benchmarks.report.figures import Figures
from benchmarks.run import measurement, result_file
from benchmarks.run.measurement import Sources
from benchmarks.run.result_file import UnusableResults
from benchmarks.run.scenarios import NAMES
from benchmarks.run.suites import SUITES, Suite, specs
from benchmarks.targets.target import Spec
from benchmarks.verification import steps
from benchmarks.verification.plan import RESULTS, plan_of
from serving import installation
from serving.cli.parser import blame
from serving.errors import DigitsError
from serving.model.repository import find_root

DONE, FAILED, UNUSABLE = 0, 1, 2
"""Exit codes: done; failed; the command or a file can't be used."""

EXTRAS = {
    "matplotlib": "bench", "packaging": "bench", "onnxruntime": "serve", "uvloop": "serve",
    "tensorflow": "train", "keras": "train", "onnx": "train",
}  # fmt: skip
"""What the base installation lacks, and the extra that brings it."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(argv)
    try:
        return COMMANDS[options.command](options)
    except (UnusableResults, DigitsError) as err:
        return _fail(blame(str(err), options.variables), UNUSABLE)
    except ModuleNotFoundError as err:
        return _fail(installation.advice(err, EXTRAS), UNUSABLE)
    except OSError as err:
        return _fail(str(err), FAILED)
    except KeyboardInterrupt:
        return _fail("interrupted", FAILED)


def _run(options: argparse.Namespace) -> int:
    """Measure, write the results and their report, print the tables."""
    _check_machine()
    suite, begin_s = suite_of(options), perf_counter()
    output = options.output or RESULTS / "local" / f"{suite.name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    named = dict(options.targets or ())
    sources = Sources(
        models=options.models or find_root("digits", Path("models")),
        artifacts=options.artifacts, generator=options.generator,
        share_cores=options.share_cores, checkouts=_checkouts(options),
        addresses={n: where for n, where in named.items() if where and isinstance(where, str)},
    )  # fmt: skip
    results = measurement.begin(suite, sources)
    measurement.measure(suite, sources, results, _Progress())
    results.save(output)
    print(f"\n{perf_counter() - begin_s:.0f} s; results in {output}")
    _report(output)
    return DONE


def _verify(options: argparse.Namespace) -> int:
    """Take every step of a verification, and report; fails if one did."""
    _check_machine()
    begin_s = perf_counter()
    plan = plan_of(options.device, options.output, options.data_dir)
    results = steps.verify(plan, _Progress())
    print(f"\n{perf_counter() - begin_s:.0f} s; results in {plan.output}")
    _report(plan.output)
    return FAILED if steps.has_failed(results) else DONE


def _check_machine() -> None:
    """Check, before minutes of work, that measuring and reporting are possible here."""
    if not hasattr(os, "sched_setaffinity"):
        raise UnusableResults("needs Linux: it binds to cores and reads /proc; plot does not")
    installation.require("matplotlib", "packaging", "onnxruntime")


def _report(output: Path) -> None:
    """Write the report of a results file beside it, as plot does, and print its tables."""
    page, results = _import_page(), result_file.load(output)
    written = page.write(results, output)
    for table in page.tables(results):
        print(f"\n{table.title}. {table.note}\n{table.text()}")
    print(f"\nreport in {written[1]}")


def suite_of(options: argparse.Namespace) -> Suite:
    """Take the suite that was named, and change in it what other options say."""
    suite = SUITES[options.suite]
    if options.targets or options.device or options.precision or options.workers:
        suite = replace(suite, name="custom", specs=_specs(suite, options), extra=())
    if options.scenarios:
        wanted = [name for name in NAMES if name in options.scenarios]
        extra = [cell for cell in suite.extra if cell.scenario in wanted]
        suite = replace(suite, scenarios=wanted, extra=extra)
    names = ("rounds", "seconds", "latency_slo_s", "arrivals", "callers", "batches")
    return replace(suite, **{name: given for name in names if (given := getattr(options, name))})


def _specs(suite: Suite, options: argparse.Namespace) -> list[Spec]:
    """Combine what the options name; what they don't is as in the suite, for its own targets."""
    named = [Spec(target=name) for name, _ in options.targets or ()] or suite.specs
    chosen = specs(
        dict.fromkeys(spec.target for spec in named),
        options.device or dict.fromkeys(spec.device for spec in named),
        options.precision or dict.fromkeys(spec.precision for spec in named),
        options.workers or dict.fromkeys(spec.workers for spec in named),
        _checkouts(options),
    )
    if not chosen:
        raise UnusableResults("nothing to measure: no target has these settings")
    return chosen


def _checkouts(options: argparse.Namespace) -> dict[str, Path]:
    """Return the folders of the targets that are our server in another checkout."""
    return {name: where for name, where in options.targets or () if isinstance(where, Path)}


class _Progress:
    """Rewrites one line on a terminal; elsewhere prints a line for each step."""

    def __init__(self) -> None:
        self._begin_s = perf_counter()

    def __call__(self, step: str) -> None:
        start, end = ("\r\033[K", "") if sys.stdout.isatty() else ("", "\n")
        print(f"{start}{perf_counter() - self._begin_s:5.0f} s  {step}", end=end, flush=True)


def _import_page() -> ModuleType:
    """Import what draws, which takes a second; what matplotlib keeps goes to our own cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "digit-serving"
    os.environ.setdefault("MPLCONFIGDIR", str(cache / "matplotlib"))
    return import_module("benchmarks.report.page")


def _compare(options: argparse.Namespace) -> int:
    a, b = result_file.load(options.a), result_file.load(options.b)
    rows = comparison.compare(a, b)
    table = comparison.table(rows, str(Figures(a).specs[0]))
    judged = [row for row in rows if row.ratios]
    print(f"{table.text()}\n\n{table.note}")
    print(f"{sum(row.agrees for row in judged)} of {len(judged)} ratios agree")
    return DONE


def _plot(options: argparse.Namespace) -> int:
    page = _import_page()
    results = result_file.load(options.results)
    if not options.readme:
        print(*page.write(results, options.results), sep="\n")
        return DONE
    if options.check:
        if page.readme_section(results) in options.readme.read_text("utf-8"):
            return DONE
        return _fail(f"{options.readme} differs from {options.results}: plot --readme", FAILED)
    changed = page.update_readme(options.readme, results)
    print(f"{options.readme} {'updated' if changed else 'is up to date'}")
    return DONE


def _recommend(options: argparse.Namespace) -> int:
    results = result_file.load(options.results)
    found = recommendation.choices(results, options.latency_slo_s, options.place, options.batch)
    ranked, suffices = recommendation.rank(found, options.rate)
    objective = f"p99 <= {options.latency_slo_s * 1e3:g} ms"
    for skip in results.skips:
        print(f"{skip.spec}: not measured: {skip.reason}")
    if not ranked:
        return _fail(f"nothing that was measured has {objective}", FAILED)
    if suffices:
        print(f"for {options.rate:,.0f} images/s with {objective}, the cheapest first:")
    else:
        print(f"nothing that was measured reaches {options.rate:,.0f} images/s with {objective}; "
              "the fastest with it:")  # fmt: skip
    print(recommendation.table(ranked).text())
    return DONE if suffices else FAILED


def _fail(reason: str, code: int) -> int:
    """Print what went wrong, on stderr."""
    print(f"python -m benchmarks: {reason}", file=sys.stderr)
    return code


COMMANDS = {
    "run": _run, "verify": _verify, "compare": _compare, "plot": _plot, "recommend": _recommend,
}  # fmt: skip
