"""The commands: run, model, tune, peers, plot."""

import argparse
import os
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, TypeVar

from benchmarks import comparison, report, result_file, runner, sizes, tables
from benchmarks.clients import CLIENTS
from benchmarks.network import Generator, split_cores
from benchmarks.others import PEERS
from benchmarks.result_file import UnusableResults
from benchmarks.runner import MODEL, NAMES, SUITES, Suite, specs
from benchmarks.runner import NAMES as SCENARIOS
from benchmarks.targets import CATALOGUE, Setting, Spec
from benchmarks.tuning import command as tuning
from benchmarks.workload import LARGEST_BATCH, Workload, drawn, golden, of_samples
from benchmarks.zoo import MODELS
from serving.commandline import installation, values
from serving.commandline.parser import Parser, blame
from serving.commandline.progress import Bar
from serving.errors import ServingError
from serving.model.repository import find_root
from serving.system.interrupts import ended_by_sigterm

_T = TypeVar("_T")

RESULTS = Path("benchmarks/results")
_KEPT = RESULTS / "peers.json"

_EXAMPLES = """\
examples:
  digit-serving bench run                                  the `bench` suite, some two minutes
  digit-serving bench run --targets h2,plain --scenarios ClosedLoop --callers 1,8,64x8
  digit-serving bench run --targets h2,triton=oip://127.0.0.1:8001 --scenarios Server
  digit-serving bench run --targets h2,old=checkout:../old --scenarios ClosedLoop
  digit-serving bench run --targets h2 --scenarios Overload
  digit-serving bench run --model net.onnx --batches 1,8   any model, by drawn inputs
  digit-serving bench net.onnx                       what serving a model costs
  digit-serving tune net.onnx --goal latency=10ms    settings for any model
  digit-serving bench plot benchmarks/results/peers.json   the report again
"""
_TARGETS = f"""\
targets:
{"".join(f"  {name:<22}{about}" + chr(10) for name, about in CATALOGUE.items())}\
  NAME=oip://HOST:PORT  a server of the Open Inference Protocol (Triton, KServe) with the same model
  NAME=checkout:DIR     our server in another checkout; NAME-infer calls its ModelInfer

SingleStream, Server and Offline are named as in MLPerf; runs are far shorter, and Offline has eight
calls in flight that repeat one request, so these are no MLPerf results. Server searches the highest
rate with p99 within --latency-slo, latency counted from the intended send time. Targets that can't
run here are reported as not measured.
"""
DONE, FAILED, UNUSABLE = 0, 1, 2
"""Exit codes: done; failed; the command or a file can't be used."""
PROGRAM = "python -m benchmarks"
EXTRAS = {"onnxruntime": "serve", "onnx": "train", "uvloop": "serve", "matplotlib": "bench"}
"""Modules that the base installation lacks, and the extra that brings each."""


def parser(name: str = PROGRAM) -> argparse.ArgumentParser:
    """Build the parser; each command's name is in `command`, that of the program in usages."""
    raw = argparse.RawDescriptionHelpFormatter
    top = Parser(
        prog=name,
        description="Measure inference: rates and latencies of scenarios, in JSON.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    top.add_version()
    commands = top.add_subparsers(
        dest="command", required=True, metavar="{run,model,tune,peers,plot}"
    )
    _add_run(
        commands.add_parser(
            "run",
            epilog=_TARGETS,
            formatter_class=raw,
            help="measure, and write a results file with its report",
            description="Measure a suite, changed by the options, and write NAME.json and its "
            "report NAME.md.",
        )
    )
    _add_model(
        commands.add_parser(
            "model",
            formatter_class=raw,
            help="measure what serving any model costs",
            description="Measure an ONNX model through the real server, and by bare ONNX Runtime "
            "in process on\nthe same cores: rows a second, p50 and p99 by rows a call and callers.",
        )
    )
    tune = commands.add_parser(
        "tune",
        formatter_class=raw,
        help="find the settings to serve a model with",
        description="Try threads, runs at once, batches and delays through the real server, the "
        "better half\nfor longer each time, and write the best as the model's config.pbtxt.",
    )
    tune.add_argument("model", type=Path, metavar="MODEL.onnx", help="the model")
    add_workload(tune)
    tuning.add_options(tune)
    peers = commands.add_parser(
        "peers",
        formatter_class=raw,
        help="compare with other projects' servers",
        description="Measure this server beside others, like with like: gRPC with gRPC, JSON with "
        "JSON, bytes with\nbytes, equal connections and calls in flight. LitServe, BentoML, mosec, "
        "MLServer and Ray Serve are\ninstalled by pip, each into an environment of its own; Triton "
        "is measured where `tritonserver` is\non the PATH. A run that was ended goes on where it "
        "was.",
    )
    _add_peers(peers)
    _add_plot(
        commands.add_parser(
            "plot",
            help="write a results file's report again",
            description="Write a page of Markdown beside a results file.",
        )
    )
    return top


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--suite", choices=tuple(SUITES), default="bench", help="targets and scenarios (bench)")
    add("--targets", type=_list(_target), metavar="A,B", help="instead of the suite's; see below")
    add("--scenarios", type=_list(_one_of(SCENARIOS)), metavar="A,B", help=", ".join(SCENARIOS))
    add("--device", type=_list(_one_of(("cpu", "cuda"))), metavar="A,B", help="cpu, cuda or both")
    add(
        "--precision",
        type=_list(_one_of(("fp32", "int8"))),
        metavar="A,B",
        help="fp32, int8 or both",
    )
    add("--workers", type=_list(values.count), metavar="N,M", help="processes of our server")
    add("--threads", type=_list(values.count), metavar="N,M", help="threads of a run of our server")
    add(
        "--callers",
        type=_list(_callers),
        metavar="N,CxM",
        help="ClosedLoop: calls in flight; CxM: M on each of C connections",
    )
    add("--batches", type=_list(_batch), metavar="N,M", help="images a call (1 to 4096)")
    add("--rounds", type=values.count, metavar="N", help="interleaved rounds")
    add("--seconds", type=values.seconds, metavar="S", help="length of one timed run")
    add(
        "--latency-slo",
        type=values.seconds,
        metavar="S",
        dest="latency_slo_s",
        help="p99 objective of Server (0.01)",
    )
    add("--arrivals", choices=("poisson", "constant"), help="how Server's calls come (poisson)")
    add(
        "--generator",
        choices=("auto", "h2load", "python"),
        default="auto",
        help="load generator of closed loops; auto: our own, with other rows in each call, "
        "and h2load, which repeats one call, for SameBytes, Offline and requests above 16 KiB",
    )
    add(
        "--share-cores",
        action="store_true",
        help="targets and generator on all cores, instead of half of them each",
    )
    add(
        "--models",
        type=Path,
        metavar="DIR",
        help="model repository (default: models, else the bundled one)",
    )
    add(
        "--model",
        type=Path,
        metavar="FILE",
        help="ONNX file to measure instead, by drawn inputs and ModelInfer",
    )
    add("--output", type=Path, metavar="FILE", help=f"({RESULTS}/local/SUITE.json)")


def _add_model(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("model", type=Path, metavar="MODEL.onnx", help="the model")
    add_workload(parser)
    add("--batches", type=_list(_batch), metavar="N,M", help="rows a call (1,8,32)")
    add("--callers", type=_list(_callers), metavar="N,M", help="calls in flight (1,8,64)")
    add("--rounds", type=values.count, metavar="N", help="interleaved rounds (3)")
    add("--seconds", type=values.seconds, metavar="S", help="length of one timed run (0.5)")
    add("--output", type=Path, metavar="FILE", help=f"raw results ({RESULTS}/local/MODEL.json)")


def _add_peers(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--peers",
        type=_list(_one_of(tuple(PEERS))),
        default=list(PEERS),
        metavar="A,B",
        help=f"servers to install and measure ({','.join(PEERS)})",
    )
    add(
        "--peer",
        type=_list(_target),
        default=[],
        metavar="NAME=oip://HOST:PORT",
        help="a server of the Open Inference Protocol that runs already, called over gRPC, such as "
        "kserve=oip://127.0.0.1:8001; several with commas",
    )
    add(
        "--models",
        type=_list(_one_of(MODELS)),
        default=list(MODELS),
        metavar="A,B",
        help=f"networks ({','.join(MODELS)})",
    )
    add(
        "--clients",
        type=_list(_one_of(CLIENTS)),
        default=list(CLIENTS),
        metavar="A,B",
        help=f"clients, of the first network ({','.join(CLIENTS)})",
    )
    add(
        "--callers",
        type=_list(_callers),
        metavar="N,CxM",
        help="calls in flight (by protocol and model: 1, 8x8, 64, 64x8)",
    )
    add("--rounds", type=values.count, metavar="N", help="interleaved rounds (3)")
    add(
        "--seconds",
        type=values.seconds,
        metavar="S",
        help="length of one timed run (3), or as long as 300 calls take",
    )
    add("--seed", type=values.at_least(0), default=0, help="of what is drawn at random (0)")
    add("--output", type=Path, metavar="FILE", help=f"(peers.json in {RESULTS}/local)")


def add_workload(parser: argparse.ArgumentParser) -> None:
    """Add the options that name the rows of calls."""
    add = parser.add_argument
    add(
        "--samples",
        type=Path,
        metavar="FILE.npz",
        help="rows to ask about: an array for each input by its name (drawn)",
    )
    add("--seed", type=values.at_least(0), default=0, help="of what is drawn at random (0)")


def _add_plot(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("results", type=Path, nargs="?", default=_KEPT, metavar="RESULTS", help=f"({_KEPT})")
    add("--readme", type=Path, metavar="FILE", help="write the table into this README instead")
    add(
        "--check",
        action="store_true",
        help="with --readme: change nothing, fail if it is out of date",
    )


def _list(convert: Callable[[str], _T]) -> Callable[[str], list[_T]]:
    return lambda text: [convert(part.strip()) for part in text.split(",")]


def _one_of(names: tuple[str, ...]) -> Callable[[str], str]:
    def name(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(names)}, got {text!r}")
        return text

    return name


def _target(text: str) -> tuple[str, str | Path]:
    """Return a target's name, and its host:port if given by address, or its folder."""
    if text in CATALOGUE:
        return text, ""
    name, _, where = (f"oip={text}" if text.startswith("oip://") else text).partition("=")
    kind = next((kind for kind in ("oip://", "checkout:") if where.startswith(kind)), "")
    where = where.removeprefix(kind)
    if not (name and kind and where) or name in CATALOGUE:
        expected = f"{', '.join(CATALOGUE)}, NAME=oip://HOST:PORT or NAME=checkout:DIR"
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text!r}")
    if kind == "oip://":
        return name, where
    if not Path(where, "serving").is_dir():
        raise argparse.ArgumentTypeError(f"{where} is no checkout of this project")
    return name, Path(where).absolute()


def _batch(text: str) -> int:
    if (number := values.count(text)) > LARGEST_BATCH:
        raise argparse.ArgumentTypeError(f"expected at most {LARGEST_BATCH}, got {text}")
    return number


def _callers(text: str) -> tuple[int, int]:
    """Return how many callers there are, and over how many connections; 0 if not named."""
    connections, is_product, callers = text.rpartition("x")
    number = values.count(connections) if is_product else 0
    return (number or 1) * values.count(callers), number


def main(argv: list[str] | None = None, program: str = PROGRAM) -> int:
    """Run one command of a program of this name; return its exit code."""
    options = parser(program).parse_args(argv)
    try:
        with ended_by_sigterm():
            return COMMANDS[options.command](options)
    except (UnusableResults, ServingError) as err:
        return _fail(program, blame(str(err), options.variables), UNUSABLE)
    except ModuleNotFoundError as err:
        return _fail(program, installation.advice(err, EXTRAS), UNUSABLE)
    except OSError as err:
        return _fail(program, str(err), FAILED)
    except KeyboardInterrupt:
        return _fail(program, "interrupted", FAILED)


def _run(options: argparse.Namespace) -> int:
    _require_linux()
    suite, begin_s = suite_of(options), perf_counter()
    output = options.output or RESULTS / "local" / f"{suite.name}.json"
    models = options.models or find_root("digits", Path("models"))
    asked = drawn(options.model) if options.model else golden(models)
    every = sorted(os.sched_getaffinity(0))
    cores, generator_cores = (every, every) if options.share_cores else split_cores()
    named = dict(options.targets or ())
    with Generator(generator_cores, options.generator) as generator:
        setting = Setting(
            models=models,
            model=options.model,
            workload=asked,
            cores=cores,
            generator=generator,
            checkouts=_checkouts(options),
            addresses={n: where for n, where in named.items() if where and isinstance(where, str)},
        )
        results = runner.run(suite, setting, partial(_progress, begin_s))
    results.save(output)
    page = report.write(results, output)
    print(f"\n{perf_counter() - begin_s:.0f} s; results in {output}")
    for table in tables.every(result_file.load(output)):
        print(f"\n{table.title}. {table.note}\n{table.text()}")
    print(f"\nreport in {page}")
    return DONE


def _require_linux() -> None:
    if not hasattr(os, "sched_setaffinity"):
        raise UnusableResults("needs Linux: it binds to cores and reads /proc; plot does not")
    installation.require("onnxruntime")  # now, not after minutes of work


def workload_of(options: argparse.Namespace) -> Workload:
    """Return the rows that a command line names, or drawn ones."""
    if options.samples:
        return of_samples(options.model, options.samples)
    return drawn(options.model, options.seed)


def _model(options: argparse.Namespace) -> int:
    _require_linux()
    asked, output = workload_of(options), options.output
    output = output or RESULTS / "local" / f"{options.model.stem}.json"
    given = _given(options, "rounds", "seconds", "callers")
    batches = options.batches or MODEL.loop_batches
    suite = replace(MODEL, loop_batches=batches if asked.rows else (1,), **given)
    cores, generator_cores = split_cores()
    print(f"{options.model}: cores for the model: {len(cores)}, seed {options.seed}", flush=True)
    suite = replace(suite, **sizes.fitting(suite, options.model, asked, cores))
    for callers, rows in sorted(suite.too_much):
        reason = "it would take too much memory, or more than 30 s a run"
        print(f"left out: {callers} callers of {rows} rows: {reason}", flush=True)
    bar = Bar(len(suite.cells()) * suite.rounds + len(suite.specs), sys.stderr)
    with Generator(generator_cores, "auto") as generator:
        setting = Setting(
            models=Path("models"),
            model=options.model,
            workload=asked,
            cores=cores,
            generator=generator,
            checkouts={},
            addresses={},
        )
        results = runner.run(suite, setting, lambda _: bar.advance())
    bar.clear()
    results.settings = {**results.settings, "seed": options.seed}
    results.save(output)
    for table in tables.every(result_file.load(output)):
        print(f"\n{table.title}. {table.note}\n{table.text()}")
    print(f"\nraw results in {output}")
    measured = {sample.spec for sample in results.samples}
    return DONE if measured >= {*suite.specs} else FAILED


def _peers(options: argparse.Namespace) -> int:
    _require_linux()
    begin_s, output = perf_counter(), options.output or RESULTS / "local" / "peers.json"
    values = {name: getattr(options, name) for name in ("rounds", "seconds", "callers")}
    given = {name: value for name, value in values.items() if value}
    plan = comparison.Plan(
        models=options.models,
        peers=options.peers,
        addresses={name: str(where) for name, where in options.peer if where},
        clients=options.clients,
        suite=replace(comparison.SUITE, **given),
        seed=options.seed,
    )
    cores, generator_cores = split_cores()
    with Generator(generator_cores, "auto") as generator:
        results = comparison.run(plan, cores, generator, partial(_progress, begin_s))
    results.save(output)
    comparison.forget_parts(plan)
    page = report.write(results, output)
    for table in tables.every(result_file.load(output)):
        print(f"\n{table.title}. {table.note}\n{table.text()}")
    print(f"\n{perf_counter() - begin_s:.0f} s; results in {output}, report in {page}")
    return DONE


def _tune(options: argparse.Namespace) -> int:
    _require_linux()
    return tuning.run(options, workload_of(options))


def suite_of(options: argparse.Namespace) -> Suite:
    """Return the named suite, changed by the other options."""
    suite = SUITES[options.suite]
    if options.model:
        suite = replace(suite, name="model", specs=specs(["grpcio-infer", "h2-infer"]))
    settings = options.device, options.precision, options.workers, options.threads
    if options.targets or any(settings):
        suite = replace(suite, name="custom", specs=_specs(suite, options))
    if options.scenarios:
        wanted = [name for name in NAMES if name in options.scenarios]
        suite = replace(suite, scenarios=wanted)
    names = ("rounds", "seconds", "latency_slo_s", "arrivals", "callers", "batches")
    suite = replace(suite, **_given(options, *names))
    if options.batches:  # of all scenarios
        suite = replace(suite, loop_batches=options.batches, other_batches=options.batches)
    return suite


def _given(options: argparse.Namespace, *names: str) -> dict[str, Any]:
    """Return the options that are given, by their names."""
    values = {name: getattr(options, name) for name in names}
    return {name: value for name, value in values.items() if value}


def _specs(suite: Suite, options: argparse.Namespace) -> list[Spec]:
    """Combine the named settings; others are as in the suite, for its own targets."""
    named = [Spec(target=name) for name, _ in options.targets or ()] or suite.specs
    chosen = specs(
        dict.fromkeys(spec.target for spec in named),
        options.device or dict.fromkeys(spec.device for spec in named),
        options.precision or dict.fromkeys(spec.precision for spec in named),
        options.workers or dict.fromkeys(spec.workers for spec in named),
        options.threads or dict.fromkeys(spec.threads for spec in named),
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
    results = result_file.load(options.results)
    if not options.readme:
        print(report.write(results, options.results))
        return DONE
    if options.check:
        if report.readme_section(results) in options.readme.read_text("utf-8"):
            return DONE
        reason = f"{options.readme} differs from {options.results}: plot --readme"
        return _fail(PROGRAM, reason, FAILED)
    changed = report.update_readme(options.readme, results)
    print(f"{options.readme} {'updated' if changed else 'is up to date'}")
    return DONE


def _fail(program: str, reason: str, code: int) -> int:
    print(f"{program}: {reason}", file=sys.stderr)
    return code


COMMANDS = {"peers": _peers, "run": _run, "model": _model, "tune": _tune, "plot": _plot}
