"""`python -m handwriting {evaluate,fit}`: how numbers are read, and what rejects all else."""

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import TypeVar

import numpy as np

from handwriting import evaluation, examples, fitting
from handwriting.evaluation import Outcome
from handwriting.pages import EMPTY
from serving.cli import values
from serving.cli.progress import Bar
from serving.pictures.candidates import NUM_MEASURES
from serving.pictures.rejecter import WEIGHTS
from training.data.mnist import Mnist

_T = TypeVar("_T")

VALIDATION_SPLIT = 1 / 12
"""Of the training digits: 5,000 that nothing is fitted on, to tune on."""

MIN_PAGES = 100
"""To fit on: one in twenty of the rows is held out, and must have digits."""

_EXAMPLES = """\
examples:
  python -m handwriting evaluate                        the table of docs/reading-pictures.md
  python -m handwriting evaluate --rows "boxes of a form" --wrong
  python -m handwriting evaluate --digits validation    to tune on; the test digits are for reports
  python -m handwriting fit                             fits rejecter.npz again, in two hours
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(argv)
    return int(options.run(options))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m handwriting",
        description="Measure how numbers are read from pictures, and fit what rejects all else.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    evaluate = commands.add_parser("evaluate", help="print how often numbers are read rightly")
    evaluate.set_defaults(run=_evaluate)
    add = evaluate.add_argument
    add("--number", type=values.count, default=1000, help="pages of each kind (1000)")
    add("--seed", type=int, default=1, help="decides the pages (1)")
    add("--digits", choices=("test", "validation"), default="test",
        help="of MNIST; validation: the training digits that fit leaves out (test)")  # fmt: skip
    add("--rows", nargs="+", default=(), metavar="KIND", choices=[*evaluation.ROWS, *EMPTY],
        help="the kinds of pages (all)")  # fmt: skip
    add("--wrong", action="store_true", help="print what was read wrongly")
    add("--data-dir", type=Path, metavar="DIR", help="folder with MNIST's files (the cache)")
    fit = commands.add_parser("fit", help="fit the rejecter on composed pages")
    fit.set_defaults(run=_fit)
    add = fit.add_argument
    add("--pages", type=values.at_least(MIN_PAGES), default=40_000,
        help="pages to fit on, of 0.3 MB each (40000)")  # fmt: skip
    add("--seed", type=int, default=0, help="decides pages and weights (0)")
    add("--epochs", type=values.count, default=fitting.EPOCHS,
        help=f"over the candidates ({fitting.EPOCHS})")  # fmt: skip
    add("--path-epochs", type=values.count, default=fitting.PATH_EPOCHS,
        help=f"over the rows ({fitting.PATH_EPOCHS})")  # fmt: skip
    add("--data-dir", type=Path, metavar="DIR", help="folder with MNIST's files (the cache)")
    add(
        "--output",
        type=Path,
        default=WEIGHTS,
        metavar="FILE",
        help="or a folder, for rejecter.npz in it (serving/pictures)",
    )
    return parser


def _evaluate(options: argparse.Namespace) -> int:
    mnist = Mnist.load(options.data_dir)
    digits = mnist.test if options.digits == "test" else mnist.split(VALIDATION_SPLIT)[1]
    kinds = tuple(options.rows) or (*evaluation.ROWS, *EMPTY)
    outcomes = evaluation.measure(digits, options.number, options.seed, kinds)
    print("| pages | read rightly | nothing found | wrong where 90 % sure |\n|---|---|---|---|")
    shown = _with_bar(outcomes, options.number * len(kinds))
    for row, group in groupby(shown, key=lambda outcome: outcome.row):
        _print_row(row, list(group), options.wrong)
    return 0


def _print_row(row: str, outcomes: list[Outcome], wrong: bool) -> None:
    right = np.mean([outcome.is_right for outcome in outcomes])
    nothing = np.mean([not outcome.read for outcome in outcomes])
    sure = [outcome for outcome in outcomes if outcome.probability >= 0.9]
    errors = f"{sum(not outcome.is_right for outcome in sure)} of {len(sure)}"
    share = f"{right:.1%}" if row in evaluation.ROWS else ""
    print(f"| {row} | {share} | {nothing:.1%} | {errors} |", flush=True)
    for number, outcome in enumerate(outcomes):
        if wrong and not outcome.is_right:
            print(f"  {number}: {outcome.text!r} {outcome.read!r} {outcome.probability:.2f}")


def _fit(options: argparse.Namespace) -> int:
    mnist = Mnist.load(options.data_dir)
    made = examples.of_pages(mnist.split(VALIDATION_SPLIT)[0], options.pages, options.seed)
    rows = [row for page in _with_bar(made, options.pages) for row in page]
    num_held_out = max(1, len(rows) // 20)
    held_out, rows = rows[:num_held_out], rows[num_held_out:]
    fit = fitting.Fit(NUM_MEASURES, options.seed)
    fit.by_labels(rows, options.epochs)
    print(f"loss of rows held out: {fit.path_loss(held_out):.4f}")
    fit.by_paths(rows, options.path_epochs)
    print(f"loss of rows held out: {fit.path_loss(held_out):.4f}")
    output = options.output / WEIGHTS.name if options.output.is_dir() else options.output
    fit.save(output)
    print(f"{output}: {output.stat().st_size} bytes")
    return 0


def _with_bar(items: Iterable[_T], total: int) -> Iterator[_T]:
    """Yield the items, with a progress bar on a terminal."""
    bar = Bar(total, sys.stderr)
    for item in items:
        bar.advance()
        yield item
    bar.clear()


if __name__ == "__main__":
    sys.exit(main())
