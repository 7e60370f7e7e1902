"""`python -m experiments {pictures,evaluate,record,fit,own}`: instruments, not installed."""

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any, TypeVar

from digit_classifier import PRETRAINED, Classifier
from digit_reader.detector import NETWORK
from digit_reader.text.candidates import NUM_MEASURES
from experiments.handwriting import evaluation, examples, fitting, record, reliability
from experiments.handwriting.evaluation import Outcome
from experiments.synthetic import drawing
from experiments.synthetic.pages import EMPTY, OTHER_FONTS
from serving.commandline import values
from serving.commandline.progress import Bar
from serving.errors import ServingError
from training.cli import import_tensorflow
from training.config import RECIPES
from training.data.mnist import Mnist, cache_dir
from training.errors import TrainingError

_T = TypeVar("_T")

VALIDATION_SPLIT = 1 / 12
"""Share of the training digits, 5,000, that nothing is fitted on, to tune on."""

FONTS_STEP = 5
"""One font of handwriting in this many is never fitted on."""

MIN_PAGES = 100
"""To fit on: one in twenty of the rows is held out, and must have digits."""

_EXAMPLES = """\
examples:
  python -m experiments pictures --models ../models    the first table of docs/reading-pictures.md
  python -m experiments evaluate                       the table of docs/reading-accuracy.md
  python -m experiments evaluate --rows "boxes of a form" --wrong
  python -m experiments evaluate --digits validation   to tune on; the test digits are for reports
  python -m experiments record after.jsonl --against before.jsonl
  python -m experiments fit                            fits a detector.onnx, in two hours
  python -m experiments fit --start digit_reader/detector.onnx --fonts fonts --path-epochs 13
"""


def main(argv: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = parser().parse_args(argv)
    try:
        return int(options.run(options))
    except (TrainingError, ServingError, OSError, KeyboardInterrupt) as err:
        print(f"python -m experiments: {err or 'interrupted'}", file=sys.stderr)
        return 1


def parser() -> argparse.ArgumentParser:
    """Describe the commands; the function of each is parsed as `run`."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description="Measure how pictures and numbers are read; fit the detector.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add = _command(commands, "pictures", _pictures, "print the accuracy on drawn digits")
    add(
        "--models",
        type=Path,
        default=PRETRAINED,
        metavar="DIR",
        help="model repository (that of the package)",
    )
    add("--number", type=values.count, default=500, help="pictures a population (500)")
    add("--seed", type=int, default=2, help="of the random pages (2)")
    add = _command(commands, "evaluate", _evaluate, "print how often numbers are read rightly")
    add("--number", type=values.count, default=1000, help="pages of each kind (1000)")
    add("--seed", type=int, default=1, help="decides the pages (1)")
    add(
        "--digits",
        choices=("test", "validation"),
        default="test",
        help="of MNIST; validation: the training digits that fit leaves out (test)",
    )
    add(
        "--rows",
        nargs="+",
        default=(),
        metavar="KIND",
        choices=evaluation.KINDS,
        help="the kinds of pages (all)",
    )
    add(
        "--fonts",
        type=Path,
        metavar="DIR",
        help="fonts of handwriting; of them each fifth is never fitted on",
    )
    add("--wrong", action="store_true", help="print wrong readings")
    add(
        "--diagram",
        type=Path,
        metavar="FILE",
        help="an SVG that shows how often answers of each confidence are right",
    )
    add = _command(
        commands, "record", _record, "write each answer to synthetic pictures into a file"
    )
    add("output", type=Path, metavar="FILE", help="a line of JSON for each picture")
    add("--number", type=values.count, default=20, help="pictures of each kind (20)")
    add("--seed", type=int, default=3, help="decides the pictures (3)")
    add("--against", type=Path, metavar="FILE", help="compare with another version's answers")
    add = _command(commands, "fit", _fit, "fit the detector on composed pages")
    add(
        "--pages",
        type=values.at_least(MIN_PAGES),
        default=40_000,
        help="pages to fit on, of 0.3 MB each (40000)",
    )
    add("--seed", type=int, default=0, help="decides pages and weights (0)")
    add(
        "--fonts",
        type=Path,
        metavar="DIR",
        help="fonts to write digits and letters in, too: *.woff, of fonts.txt",
    )
    add(
        "--start",
        type=Path,
        metavar="FILE",
        help="go on from these weights, not over candidates; average both in the end",
    )
    add(
        "--epochs",
        type=values.count,
        default=fitting.EPOCHS,
        help=f"over the candidates ({fitting.EPOCHS})",
    )
    add(
        "--path-epochs",
        type=values.count,
        default=fitting.PATH_EPOCHS,
        help=f"over the rows ({fitting.PATH_EPOCHS})",
    )
    add(
        "--output",
        type=Path,
        default=NETWORK,
        metavar="FILE",
        help="or a folder, for detector.onnx in it (digit_reader/)",
    )
    add = _command(commands, "own", _own, "print how much a person's own pictures gain")
    add(
        "--hands",
        type=int,
        nargs="+",
        default=[2, 3, 4, 5],
        metavar="N",
        help="their numbers (2 3 4 5)",
    )
    add("--seeds", type=int, nargs="+", default=[0, 1], metavar="N", help="of trainings (0 1)")
    add("--digits", choices=("test", "validation"), default="test", help="as of evaluate (test)")
    return parser


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> Callable[..., Any]:
    """Add a command; return the function that adds its options."""
    command = commands.add_parser(name, help=text)
    command.set_defaults(run=run)
    command.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="folder with MNIST's files (the cache)"
    )
    add: Callable[..., Any] = command.add_argument
    return add


def _pictures(options: argparse.Namespace) -> int:
    with Classifier.load(options.models / "digits") as classifier:
        drawing.print_table(classifier, options.number, options.seed)
    return 0


def _evaluate(options: argparse.Namespace) -> int:
    mnist = Mnist.load(options.data_dir)
    digits = mnist.test if options.digits == "test" else mnist.split(VALIDATION_SPLIT)[1]
    fonts = _fonts(options.fonts)[1]
    if evaluation.OTHER_HANDS in options.rows and not fonts:
        raise TrainingError(f"{evaluation.OTHER_HANDS}: --fonts is missing")
    other_hands = [evaluation.OTHER_HANDS] if fonts else []
    kinds = options.rows or [*evaluation.ROWS, *other_hands, *EMPTY]
    print(
        "| pages | right | no answer | wrong | wrong of those ≥ 90 % | ≥ 99 % |\n"
        "|---|---|---|---|---|---|"
    )
    measured = evaluation.measure(digits, options.number, options.seed, kinds, fonts)
    shown = _with_bar(measured, options.number * len(kinds))
    outcomes = []
    for row, group in groupby(shown, key=lambda outcome: outcome.row):
        outcomes += (of_row := list(group))
        _print_row(row, of_row, wrong=options.wrong)
    _print_row("all", outcomes, wrong=False)
    if options.diagram:
        options.diagram.write_text(reliability.diagram(outcomes))
    return 0


def _print_row(row: str, outcomes: list[Outcome], *, wrong: bool) -> None:
    num_right = sum(outcome.is_right for outcome in outcomes)
    refused = sum(not outcome.read and not outcome.is_right for outcome in outcomes)
    cells = [row, num_right, refused, len(outcomes) - num_right - refused]
    for limit in (0.9, 0.99):
        sure = [outcome for outcome in outcomes if outcome.probability >= limit]
        cells.append(f"{sum(not outcome.is_right for outcome in sure)} of {len(sure)}")
    print("|", " | ".join(map(str, cells)), "|", flush=True)
    for number, outcome in enumerate(outcomes):
        if wrong and not outcome.is_right:
            print(f"  {number}: {outcome.text!r} {outcome.read!r} {outcome.probability:.2f}")


def _record(options: argparse.Namespace) -> int:
    found = record.answers(Mnist.load(options.data_dir).test, options.number, options.seed)
    with options.output.open("w") as file:
        for each in _with_bar(found, 0):
            print(record.as_line(each), file=file)
    if options.against is None:
        return 0
    differing, largest = record.compare(options.against, options.output)
    print(
        f"other answers: {', '.join(differing) or 'none'}; largest difference of a probability:"
        f" {largest:.3g}"
    )
    return 1 if differing else 0


def _fit(options: argparse.Namespace) -> int:
    mnist = Mnist.load(options.data_dir)
    digits, fonts = mnist.split(VALIDATION_SPLIT)[0], _fonts(options.fonts)[0]
    made = examples.of_pages(digits, [*OTHER_FONTS, *fonts], options.pages, options.seed)
    rows = [row for page in _with_bar(made, options.pages) for row in page]
    num_held_out = max(1, len(rows) // 20)
    held_out, rows = rows[:num_held_out], rows[num_held_out:]
    fit = fitting.Fit(NUM_MEASURES, options.seed)
    if options.start:
        fit.start_from(options.start)
    else:
        fit.by_labels(rows, options.epochs)
    print(f"loss of rows held out: {fit.path_loss(held_out):.4f}")
    fit.by_paths(rows, options.path_epochs)
    if options.start:
        fit.blend(options.start)
    print(f"loss of rows held out: {fit.path_loss(held_out):.4f}")
    output = options.output / NETWORK.name if options.output.is_dir() else options.output
    fit.save(output)
    print(f"{output}: {output.stat().st_size} bytes")
    return 0


def _fonts(folder: Path | None) -> tuple[list[Path], list[Path]]:
    """Return a folder's fonts, to fit on and to measure with."""
    if not folder:
        return [], []
    fonts = sorted(folder.glob("*.woff"))
    if len(fonts) < FONTS_STEP:
        raise TrainingError(f"{folder}: {len(fonts)} fonts (*.woff), {FONTS_STEP} or more wanted")
    held_out = fonts[FONTS_STEP // 2 :: FONTS_STEP]
    return [font for font in fonts if font not in held_out], held_out


def _own(options: argparse.Namespace) -> int:
    import_tensorflow(cache_dir().parent)
    from experiments.handwriting import own
    from training.fitting.train import split

    mnist = Mnist.load(options.data_dir)
    digits = mnist.test if options.digits == "test" else split(mnist, RECIPES["fine-tune"])[1]
    print("| hand | seed |", *(f"{name.replace('_', ' ')} |" for name in own.Gain._fields))
    print("|---" * (2 + len(own.Gain._fields)) + "|")
    for hand in options.hands:
        gains = own.measure(mnist, digits, hand, options.seeds)
        for seed, gain in zip(options.seeds, gains, strict=True):
            print(f"| {hand} | {seed} |", *(f"{value:.0f} |" for value in gain), flush=True)
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
