"""The commands: run, plot."""

import argparse
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

from benchmarks.arguments import RESULTS, parser
from benchmarks.load.cores import split_cores
from benchmarks.load.network import Generator
from benchmarks.report import page, tables
from benchmarks.run import result_file, runner
from benchmarks.run.result_file import UnusableResults
from benchmarks.run.scenarios import NAMES
from benchmarks.run.suites import SUITES, Suite, specs
from benchmarks.targets.target import Setting, Spec
from benchmarks.targets.workload import drawn, golden
from serving.commandline import installation
from serving.commandline.options import blame
from serving.errors import DigitsError
from serving.model.repository import find_root

DONE, FAILED, UNUSABLE = 0, 1, 2
"""Exit codes: done; failed; the command or a file can't be used."""

EXTRAS = {"matplotlib": "bench", "onnxruntime": "serve", "uvloop": "serve"}
"""Modules that the base installation lacks, and the extra that brings each."""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(argv)
    # matplotlib's cache goes into our own.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "digit-serving"
    os.environ.setdefault("MPLCONFIGDIR", str(cache / "matplotlib"))
    try:
        return {"run": _run, "plot": _plot}[options.command](options)
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
    if not hasattr(os, "sched_setaffinity"):
        raise UnusableResults("needs Linux: it binds to cores and reads /proc; plot does not")
    installation.require("matplotlib", "onnxruntime")  # now, not after minutes of work
    suite, begin_s = suite_of(options), perf_counter()
    output = options.output or RESULTS / "local" / f"{suite.name}.json"
    models = options.models or find_root("digits", Path("models"))
    asked = drawn(options.model) if options.model else golden(models)
    every = sorted(os.sched_getaffinity(0))
    cores, generator_cores = (every, every) if options.share_cores else split_cores()
    named = dict(options.targets or ())
    with Generator(generator_cores, options.generator) as generator:
        setting = Setting(
            models=models, model=options.model, workload=asked, cores=cores,
            generator=generator, checkouts=_checkouts(options),
            addresses={n: where for n, where in named.items() if where and isinstance(where, str)},
        )  # fmt: skip
        results = runner.run(suite, setting, partial(_progress, begin_s))
    results.save(output)
    report, *picture = page.write(results, output)
    print(f"\n{perf_counter() - begin_s:.0f} s; results in {output}")
    for table in tables.every(result_file.load(output)):
        print(f"\n{table.title}. {table.note}\n{table.text()}")
    print(f"\nreport in {' with '.join(map(str, [report, *picture]))}")
    return DONE


def suite_of(options: argparse.Namespace) -> Suite:
    """Return the named suite, changed by the other options."""
    suite = SUITES[options.suite]
    if options.model:
        suite = replace(suite, name="model", specs=specs(["engine", "grpcio-infer", "h2-infer"]))
    if options.targets or options.device or options.precision or options.workers:
        suite = replace(suite, name="custom", specs=_specs(suite, options))
    if options.scenarios:
        wanted = [name for name in NAMES if name in options.scenarios]
        suite = replace(suite, scenarios=wanted)
    names = ("rounds", "seconds", "latency_slo_s", "arrivals", "callers", "batches")
    return replace(suite, **{name: given for name in names if (given := getattr(options, name))})


def _specs(suite: Suite, options: argparse.Namespace) -> list[Spec]:
    """Combine the named settings; others are as in the suite, for its own targets."""
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


def _progress(begin_s: float, step: str) -> None:
    """Rewrite one line on a terminal; elsewhere print a line."""
    start, end = ("\r\033[K", "") if sys.stdout.isatty() else ("", "\n")
    print(f"{start}{perf_counter() - begin_s:5.0f} s  {step}", end=end, flush=True)


def _plot(options: argparse.Namespace) -> int:
    """Write the report of a results file again, or the README's table."""
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


def _fail(reason: str, code: int) -> int:
    """Print an error on stderr."""
    print(f"python -m benchmarks: {reason}", file=sys.stderr)
    return code
