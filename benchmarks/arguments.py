"""The command line's options and their help."""

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.report.recommendation import PLACES
from benchmarks.run.scenarios import NAMES as SCENARIOS
from benchmarks.run.suites import SUITES
from benchmarks.targets.catalogue import CATALOGUE
from benchmarks.verification.plan import RESULTS
from serving.cli.parser import Parser

_T = TypeVar("_T")

_BENCH = RESULTS / "bench.json"

_EXAMPLES = """\
examples:
  python -m benchmarks run                                  the `bench` suite, some four minutes
  python -m benchmarks run --targets h2,plain --scenarios ClosedLoop --callers 1,8,64x8
  python -m benchmarks run --targets h2,triton=oip://127.0.0.1:8001 --scenarios Server
  python -m benchmarks run --targets engine --device cpu,cuda --scenarios Offline --batches 1,64
  python -m benchmarks run --targets h2,old=checkout:../old --scenarios ClosedLoop
  python -m benchmarks run --suite overload                 more than can be answered in time
  python -m benchmarks verify                               a GPU, from training to rates
  python -m benchmarks compare before.json after.json
  python -m benchmarks recommend --rate 5000 --latency-slo 0.01
"""
_TARGETS = f"""\
targets:
{"".join(f"  {name:<22}{entry.about}" + chr(10) for name, entry in CATALOGUE.items())}\
  NAME=oip://HOST:PORT  a server of the Open Inference Protocol (Triton, KServe), model `digits`
  NAME=checkout:DIR     our server in another checkout; NAME may end like ours do

SingleStream, MultiStream, Server and Offline are MLPerf's. Server searches the highest rate with
p99 within --latency-slo, latency counted from the intended send time. Targets that can't run here
are reported as not measured.
"""


def parser() -> argparse.ArgumentParser:
    """Build the parser; each command's name is in `command`."""
    raw = argparse.RawDescriptionHelpFormatter
    top = Parser(
        prog="python -m benchmarks",
        description="Measure inference: MLPerf's scenarios, raw latencies kept, in JSON.",
        epilog=_EXAMPLES,
        formatter_class=raw,
    )
    top.add_version()
    commands = top.add_subparsers(dest="command", required=True,
                                  metavar="{run,verify,compare,plot,recommend}")  # fmt: skip
    _add_run(commands.add_parser(
        "run", epilog=_TARGETS, formatter_class=raw,
        help="measure, and write a results file with its report",
        description="Measure a suite, or what the options name, and write NAME.json and its "
        "report (NAME.md, NAME.html, pictures) beside it.",
    ))  # fmt: skip
    _add_verify(commands.add_parser(
        "verify",
        help="train, export, compare and measure on a GPU (25 minutes), into one results file",
        description="Train `default` on the GPU and on the CPU, export it, compare the engines' "
        "answers to the 10,000 test images with the CPU's, and measure the suite `gpu`. A step "
        "that fails is one line; the others still run. Needs the extras train-gpu, serve-gpu and "
        "bench: `make verify-gpu` installs them.",
    ))  # fmt: skip
    _add_compare(commands.add_parser(
        "compare", help="compare two results files of one machine",
        description="Print for every cell in both files how many times as fast as the first "
        "target it is in A and in B, whether the two ranges (least to greatest round) overlap, "
        "and how fast B is by A. Refuses files of unlike machines.",
    ))  # fmt: skip
    _add_plot(commands.add_parser(
        "plot", help="write a results file's report again",
        description="Write markdown, HTML and pictures beside a results file.",
    ))  # fmt: skip
    _add_recommend(commands.add_parser(
        "recommend",
        help="name target, device, precision, batch and workers for a rate and an objective",
        description="Name what kept to the objective at the rate, the cheapest in processor time "
        "first. Only what was measured counts: nothing is extrapolated.",
    ))  # fmt: skip
    return top


def _add_run(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--suite", choices=tuple(SUITES), default="bench", help="what to measure (bench)")
    add("--targets", type=_list(_target), metavar="A,B", help="instead of the suite's; see below")
    add("--scenarios", type=_list(_one_of(SCENARIOS)), metavar="A,B", help=", ".join(SCENARIOS))
    add("--device", type=_list(_one_of(("cpu", "cuda"))), metavar="A,B", help="cpu, cuda or both")
    add("--precision", type=_list(_one_of(("fp32", "int8"))), metavar="A,B",
        help="fp32, int8 or both")  # fmt: skip
    add("--workers", type=_list(_positive(int)), metavar="N,M", help="processes of our server")
    add("--callers", type=_list(_callers), metavar="N,CxM",
        help="ClosedLoop: calls in flight; CxM: M on each of C connections")  # fmt: skip
    add("--batches", type=_list(_BATCH), metavar="N,M", help="images a call, Offline (1 to 4096)")
    add("--rounds", type=_positive(int), metavar="N", help="interleaved rounds")
    add("--seconds", type=_positive(float), metavar="S", help="length of one timed run")
    add("--latency-slo", type=_positive(float), metavar="S", dest="latency_slo_s",
        help="p99 objective of Server (0.01)")  # fmt: skip
    add("--arrivals", choices=("poisson", "constant"), help="how Server's calls come (poisson)")
    add("--generator", choices=("auto", "h2load", "python"), default="auto",
        help="what drives closed loops over the network; auto: h2load if installed")  # fmt: skip
    add("--share-cores", action="store_true",
        help="targets and generator on all cores, instead of half of them each")  # fmt: skip
    add("--models", type=Path, metavar="DIR",
        help="model repository (default: models, else the bundled one)")  # fmt: skip
    add("--artifacts", type=Path, default=Path("artifacts"), metavar="DIR",
        help="what training wrote, for the Keras targets")  # fmt: skip
    add("--output", type=Path, metavar="FILE", help=f"({RESULTS}/local/SUITE.json)")


def _add_verify(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--device", choices=("cpu", "cuda"), default="cuda",
        help="cpu: rehearse all that needs no GPU, in a minute (%(default)s)")  # fmt: skip
    add("--data-dir", type=Path, metavar="DIR",
        help="MNIST's four files (default: a cache, filled from the network once)")  # fmt: skip
    add("--output", type=Path, metavar="FILE",
        help=f"({RESULTS}/gpu.json; of the rehearsal {RESULTS}/local/rehearsal.json)")  # fmt: skip


def _add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("a", type=Path, metavar="A", help="results file")
    parser.add_argument("b", type=Path, metavar="B", help="results file")


def _add_plot(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("results", type=Path, nargs="?", default=_BENCH, metavar="RESULTS", help=f"({_BENCH})")
    add("--readme", type=Path, metavar="FILE", help="write the table into this README instead")
    add("--check", action="store_true",
        help="with --readme: change nothing, fail if it is out of date")  # fmt: skip


def _add_recommend(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--rate", type=_positive(float), required=True, metavar="N", help="images a second")
    add("--latency-slo", type=_positive(float), default=0.01, metavar="S", dest="latency_slo_s",
        help="what p99 may not exceed (0.01)")  # fmt: skip
    add("--place", choices=PLACES, default="served", help="where the model runs (served)")
    add("--batch", type=_BATCH, metavar="N", help="images in each call of the callers (any)")
    add("--results", type=Path, default=_BENCH, metavar="FILE", help=f"({_BENCH})")


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


def _positive(kind: Callable[[str], Any], most: float = math.inf) -> Callable[[str], Any]:
    def positive(text: str) -> Any:
        if not 0 < (number := kind(text)) <= most:
            limit = f" and at most {most}" if most < math.inf else ""
            raise argparse.ArgumentTypeError(f"expected more than 0{limit}, got {text}")
        return number

    return positive


_BATCH = _positive(int, 4096)


def _callers(text: str) -> tuple[int, int]:
    """Return how many callers there are, and over how many connections; 0 if not named."""
    connections, is_product, callers = text.rpartition("x")
    number = _positive(int)(connections) if is_product else 0
    return (number or 1) * _positive(int)(callers), number
