"""The command line's options and their help."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from benchmarks.report.recommendation import PLACES
from benchmarks.run.scenarios import NAMES as SCENARIOS
from benchmarks.run.suites import SUITES
from benchmarks.targets.catalogue import ABOUT, NAMES
from commandline.parser import Parser

_T = TypeVar("_T")

RESULTS = Path("benchmarks/results")

OIP, CHECKOUT = "oip://", "checkout:"

_EXAMPLES = """\
examples:
  python -m benchmarks run                                  the `bench` suite, some four minutes
  python -m benchmarks run --targets h2,plain --scenarios ClosedLoop --callers 1,8,64x8
  python -m benchmarks run --targets h2,triton=oip://127.0.0.1:8001 --scenarios Server
  python -m benchmarks run --targets engine --device cpu,cuda --scenarios Offline --batches 1,64
  python -m benchmarks run --targets h2,old=checkout:../old --scenarios ClosedLoop
  python -m benchmarks run --suite overload                 more than can be answered in time
  python -m benchmarks compare before.json after.json
  python -m benchmarks recommend --rate 5000 --latency-slo 0.01
"""


def parser() -> argparse.ArgumentParser:
    """Build the parser; each command's name is in `command`."""
    top = Parser(
        prog="digits-bench",
        description="Measure inference: MLPerf's scenarios, raw latencies kept, in JSON.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_version()
    commands = top.add_subparsers(dest="command", required=True,
                                  metavar="{run,compare,plot,recommend}")  # fmt: skip
    _add_run(commands)
    _add_compare(commands)
    _add_plot(commands)
    _add_recommend(commands)
    return top


def _add_run(commands: Any) -> None:
    targets = "".join(f"\n  {name:<18}{text}" for name, text in ABOUT.items())
    run = commands.add_parser(
        "run",
        help="measure, and write a results file with its report",
        description="Measure a suite, or what the options name, and write NAME.json and its "
        "report (NAME.md, NAME.html, pictures) beside it.",
        epilog=f"targets:{targets}\n  NAME=oip://HOST:PORT   any Open Inference Protocol "
        "server (Triton, KServe, MLServer), model `digits`\n"
        "  NAME=checkout:DIR      our server in another checkout; NAME may end like ours do\n\n"
        "SingleStream, MultiStream, Server and Offline are MLPerf's. Server searches the highest\n"
        "rate with p99 within --latency-slo, latency counted from the intended send time.\n"
        "What can't run here is reported as not measured.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = run.add_argument
    add("--suite", choices=tuple(SUITES), default="bench", help="what to measure (bench)")
    add("--targets", type=_list(_target), metavar="A,B", help="instead of the suite's; see below")
    add("--scenarios", type=_list(_one_of(SCENARIOS)), metavar="A,B", help=", ".join(SCENARIOS))
    add("--device", type=_list(_one_of(("cpu", "cuda"))), metavar="A,B",
        help="cpu, cuda or both")  # fmt: skip
    add("--precision", type=_list(_one_of(("fp32", "int8"))), metavar="A,B",
        help="fp32, int8 or both")  # fmt: skip
    add("--workers", type=_list(_positive(int)), metavar="N,M",
        help="processes of our server")  # fmt: skip
    add("--callers", type=_list(_callers), metavar="N,CxM",
        help="ClosedLoop: calls in flight; CxM: M on each of C connections")  # fmt: skip
    add("--batches", type=_list(_batch), metavar="N,M", help="images a call, Offline (1 to 4096)")
    add("--rounds", type=_positive(int), metavar="N", help="interleaved rounds")
    add("--seconds", type=_positive(float), metavar="S", help="length of one timed run")
    add("--latency-slo", type=_positive(float), metavar="S", help="p99 objective of Server (0.01)")
    add("--arrivals", choices=("poisson", "constant"), help="how Server's calls come (poisson)")
    add("--generator", choices=("auto", "h2load", "python"), default="auto",
        help="what drives closed loops over the network; auto: h2load if installed")  # fmt: skip
    add("--share-cores", action="store_true",
        help="targets and generator on all cores, instead of half of them each")  # fmt: skip
    add("--models", type=Path, metavar="DIR",
        help="model repository (models, or the model in the box where that has none)")  # fmt: skip
    add("--artifacts", type=Path, default=Path("artifacts"), metavar="DIR",
        help="what training left, for the Keras targets")  # fmt: skip
    add("--output", type=Path, metavar="FILE", help=f"({RESULTS}/local/SUITE.json)")


def _add_compare(commands: Any) -> None:
    compare = commands.add_parser(
        "compare",
        help="compare two results files of one machine",
        description="Tell for every cell in both files how many times as fast as the first target "
        "it is in A and in B, and whether the two ranges, least to greatest round, overlap; "
        "and how fast B is by A. Refuses files of unlike machines.",
    )
    compare.add_argument("a", type=Path, metavar="A", help="results file")
    compare.add_argument("b", type=Path, metavar="B", help="results file")


def _add_plot(commands: Any) -> None:
    plot = commands.add_parser(
        "plot",
        help="write a results file's report anew",
        description="Write markdown, HTML and pictures beside a results file.",
    )
    plot.add_argument("results", type=Path, nargs="?", default=RESULTS / "bench.json",
                      help=f"({RESULTS}/bench.json)")  # fmt: skip
    plot.add_argument("--readme", type=Path, metavar="FILE",
                      help="write the table into this README instead")  # fmt: skip
    plot.add_argument("--check", action="store_true",
                      help="with --readme: change nothing, fail if it is out of date")  # fmt: skip


def _add_recommend(commands: Any) -> None:
    recommend = commands.add_parser(
        "recommend",
        help="name target, device, precision, batch and workers for a rate and an objective",
        description="Name what kept to the objective at the rate, the cheapest in processor time "
        "first. Only what was measured counts: nothing is extrapolated.",
    )
    add = recommend.add_argument
    add("--rate", type=_positive(float), required=True, metavar="N", help="images a second")
    add("--latency-slo", type=_positive(float), default=0.01, metavar="S",
        help="what p99 may not exceed (0.01)")  # fmt: skip
    add("--place", choices=PLACES, default="served", help="where the model runs (served)")
    add("--batch", type=_batch, metavar="N", help="images in each call of the callers (any)")
    add("--results", type=Path, default=RESULTS / "bench.json", metavar="FILE",
        help=f"({RESULTS}/bench.json)")  # fmt: skip


def _list(convert: Callable[[str], _T]) -> Callable[[str], list[_T]]:
    def comma_separated(text: str) -> list[_T]:
        return [convert(part.strip()) for part in text.split(",")]

    return comma_separated


def _one_of(names: tuple[str, ...]) -> Callable[[str], str]:
    def name(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"expected one of {', '.join(names)}, got {text!r}")
        return text

    return name


def _target(text: str) -> tuple[str, str | Path]:
    """Return a target's name and, for one by address, host:port; for a checkout, its folder."""
    name, is_by_address, address = text.partition(OIP)
    name = name.rstrip("=") or "oip"
    if is_by_address and address and name not in NAMES:
        return name, address
    name, is_checkout, folder = text.partition(f"={CHECKOUT}")
    if is_checkout and name and name not in NAMES:
        if not Path(folder, "serving").is_dir():
            raise argparse.ArgumentTypeError(f"{folder} is no checkout of this project")
        return name, Path(folder).absolute()
    if text not in NAMES:
        names = ", ".join(NAMES)
        raise argparse.ArgumentTypeError(
            f"expected {names}, NAME=oip://HOST:PORT or NAME=checkout:DIR, got {text!r}"
        )
    return text, ""


def _positive(kind: type[_T]) -> Callable[[str], _T]:
    def positive(text: str) -> _T:
        number = kind(text)  # type: ignore[call-arg]
        if not number > 0:  # type: ignore[operator]
            raise argparse.ArgumentTypeError(f"expected more than 0, got {text}")
        return number

    return positive


def _callers(text: str) -> tuple[int, int]:
    """Return how many callers there are, and over how many connections; 0 if not named."""
    connections, is_product, callers = text.partition("x")
    if not is_product:
        return _positive(int)(text), 0
    number = _positive(int)(connections)
    return number * _positive(int)(callers), number


def _batch(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 4096:
        raise argparse.ArgumentTypeError(f"expected 1 to 4096 images a call, got {text}")
    return number
