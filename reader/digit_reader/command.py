"""The command `read`: pictures in, the numbers on them out."""

import argparse
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from digit_classifier.command import classify_images
from serving.cli.model_options import add_source
from serving.cli.models import model_config
from serving.cli.target import client_of
from serving.commandline import installation, values
from serving.errors import InvalidRequest

if TYPE_CHECKING:
    from digit_classifier import Classifier
    from digit_classifier.answers import PictureAnswer
    from digit_reader.facts import Number

HELP = "read the numbers in picture files"
EXAMPLES = """\
  digit-serving read form.png                             form.png: 90210 (92.7 %)
  digit-serving read bill.jpg scans/ --csv > numbers.csv  12/05/2026 and -3,14, a row for each
  digit-serving read scans/ --json > numbers.jsonl        with a box for each digit
  digit-serving read note.jpg --reject-below 0.9          ? if a number is less probable
  digit-serving read bill.jpg --pattern '\\d+[.,]\\d{2}'    only amounts, such as 3,14
  digit-serving read scans/ --pattern '[A-Z]{2}\\d{20}'    letters are ink that is skipped
"""
_COLUMNS = (
    "picture", "text", "probability", "rejected", "turned", "left", "top", "right", "bottom",
    "error",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "pictures",
        nargs="+",
        metavar="PICTURE",
        help="picture with numbers, such as a photo of a note or a scan of a form, of the formats "
        "of classify; a folder of them; or - for stdin",
    )
    parser.add_argument(
        "--reject-below",
        type=values.share,
        default=0.0,
        metavar="P",
        help="print ? before a line with a number that is less probable than this, 0 to 1",
    )
    parser.add_argument(
        "--pattern",
        type=_pattern,
        metavar="REGEX",
        help="read only numbers that fit this regular expression of digits, marks and blanks; "
        "letters in it are ink that is skipped",
    )
    parser.add_argument("--csv", action="store_true", help="print a CSV table with a heading")
    add_source(parser)


def _pattern(text: str) -> str:
    from digit_reader.text.pattern import of_rows  # needs numpy, which `--help` does not

    try:
        of_rows(text)
    except InvalidRequest as err:
        raise argparse.ArgumentTypeError(str(err)) from err
    return text


def run(options: argparse.Namespace) -> int:
    """Read the pictures; return the exit code."""
    installation.require("PIL", "scipy", "onnxruntime")
    from digit_classifier.answers import print_answers
    from digit_reader.reader import find_candidates, numbers_of

    def answer(_: str, reading: Any) -> "PictureAnswer | str":
        if numbers := numbers_of(reading, classify, options.pattern):
            return numbers_answer(numbers, options.reject_below)
        fitting = f" that fits {options.pattern}" if options.pattern else ""
        return f"no number found{fitting}; `classify` reads a single digit"

    with _open_classifier(options) as classifier:
        classify = partial(classify_images, classifier)
        return print_answers(options, _COLUMNS, find_candidates, answer)


def _open_classifier(options: argparse.Namespace) -> "Classifier":
    """Load the classifier that the options name, or connect to their server."""
    from digit_classifier import Classifier
    from digit_classifier.remote import RemoteDigits

    if options.target:
        return Classifier(RemoteDigits(client_of(options)))
    config = model_config(options)
    path = config.models / config.model
    return Classifier.load(path, config.version, config.device, config.precision)


def numbers_answer(numbers: "Sequence[Number]", reject_below: float) -> "PictureAnswer":
    """Make the answer of `read` from the numbers of a picture, at least one."""
    import math

    from digit_classifier.answers import PictureAnswer, answer_text, as_word
    from digit_reader.facts import number_facts

    facts = [number_facts(number, reject_below) for number in numbers]
    confidence = math.prod(number.probability for number in numbers)
    rejected = any(fact["rejected"] for fact in facts)
    words, turned = " ".join(number.text for number in numbers), numbers[0].turned
    text = answer_text(words, confidence, rejected, f", turned by {turned}°" if turned else "")
    rows = [
        {name: fact[name] for name in ("text", "probability", "turned")}
        | {"rejected": as_word(fact["rejected"]), **fact["box"]}
        for fact in facts
    ]
    return PictureAnswer(text, {"numbers": facts}, rows)
