"""Prints the answers of `classify` and `read` as they come, with a progress bar."""

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from serving.commandline.escape import escape
from serving.commandline.progress import Bar
from serving.errors import ConfigurationError
from serving.pictures.facts import Box, number_facts
from serving.predictions import Predictions
from serving.telemetry import logs

if TYPE_CHECKING:
    from serving.pictures.facts import Number

_NUM_DECIMALS = 6
HEADINGS = {
    "digits csv": ["picture", "digit", "probability", "rejected", "error", "label"],
    "numbers csv": ["picture", "text", "probability", "rejected", "turned", *Box._fields, "error"],
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """The digit of one picture, or why there is none."""

    picture: str
    digit: int | None = None
    label: str = ""
    """The class's label: the digit itself, of digits."""
    probabilities: tuple[float, ...] = ()
    rejected: bool = False
    """Whether the digit is less probable than `--reject-below`."""
    error: str | None = None


def answer(picture: str, predictions: Predictions, reject_below: float) -> Answer:
    """Make the answer for a picture from predictions of one row."""
    digit, probabilities = int(predictions.digits[0]), predictions.probabilities[0]
    return Answer(
        picture=picture,
        digit=digit,
        label=predictions.labels[0],
        probabilities=tuple(float(p) for p in probabilities),
        rejected=bool(probabilities[digit] < reject_below),
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class NumbersAnswer:
    """The numbers of one picture, or why there are none."""

    picture: str
    numbers: "tuple[Number, ...]" = ()
    reject_below: float = 0.0
    error: str | None = None


_Answer = TypeVar("_Answer", Answer, NumbersAnswer)


class Report(Generic[_Answer]):
    """Prints each answer at once, and the progress on a terminal."""

    def __init__(self, kind: str, total: int) -> None:
        """Print the heading, if there is one.

        Args:
            kind: a key of PRINTERS.
            total: how many answers there will be.
        """
        self._print: Callable[[_Answer], None] = PRINTERS[kind]
        self._total, self._num_failed = total, 0
        self._bar = Bar(total, sys.stderr)
        # The terminal's encoding may not have every character of a file's name.
        if reconfigure := getattr(sys.stdout, "reconfigure", None):
            reconfigure(errors="backslashreplace")
        if kind in HEADINGS:
            csv.writer(sys.stdout, lineterminator="\n").writerow(HEADINGS[kind])

    def add(self, answer: _Answer) -> None:
        """Print one answer."""
        self._num_failed += answer.error is not None
        self._bar.clear()
        self._print(answer)
        if sys.stdout is not None:
            sys.stdout.flush()
        self._bar.advance()

    def close(self) -> None:
        """Remove the bar."""
        self._bar.clear()

    def exit_code(self) -> int:
        """Return 1 if any picture failed; say on stderr how many, where answers may hide it."""
        if self._num_failed and self._total > 1:
            logs.print_line(f"{self._num_failed} of {self._total} failed", sys.stderr)
        return 1 if self._num_failed else 0


def kind_of(answers: str, options: argparse.Namespace) -> str:
    """Return the key of PRINTERS for "digits" or "numbers".

    Raises:
        ConfigurationError: the options name two.
    """
    if options.csv and options.json:
        raise ConfigurationError("--csv and --json exclude each other")
    return answers + (" csv" if options.csv else " json" if options.json else "")


def _print_text(answer: Answer) -> None:
    picture = escape(answer.picture)
    if answer.error is not None:
        print(f"{picture}: {escape(answer.error)}", file=sys.stderr)
        return
    assert answer.digit is not None
    certainty = f"{answer.probabilities[answer.digit] * 100:.1f} %"
    label = escape(answer.label)
    answered = f"? (perhaps {label}, " if answer.rejected else f"{label} ("
    print(f"{picture}: {answered}{certainty})")


def _print_json(answer: Answer) -> None:
    line: dict[str, Any] = {"picture": answer.picture}
    if answer.error is not None:
        line["error"] = answer.error
    else:
        line["digit"] = answer.digit
        line["label"] = answer.label
        line["probabilities"] = [round(p, _NUM_DECIMALS) for p in answer.probabilities]
        line["rejected"] = answer.rejected
    print(json.dumps(line))


def _print_csv(answer: Answer) -> None:
    row: list[object] = [escape(answer.picture), "", "", "", answer.error, ""]
    if answer.digit is not None:
        probability = round(answer.probabilities[answer.digit], _NUM_DECIMALS)
        row[1:] = [answer.digit, probability, str(answer.rejected).lower(), "", answer.label]
    csv.writer(sys.stdout, lineterminator="\n").writerow(row)


def _print_numbers(answer: NumbersAnswer) -> None:
    picture = escape(answer.picture)
    if answer.error is not None:
        print(f"{picture}: {escape(answer.error)}", file=sys.stderr)
        return
    text = " ".join(number.text for number in answer.numbers)
    certainty = f"{math.prod(number.probability for number in answer.numbers) * 100:.1f} %"
    is_sure = all(number.probability >= answer.reject_below for number in answer.numbers)
    answered = f"{text} (" if is_sure else f"? (perhaps {text}, "
    turned = answer.numbers[0].turned
    print(f"{picture}: {answered}{certainty}{f', turned by {turned}°' if turned else ''})")


def _print_numbers_csv(answer: NumbersAnswer) -> None:
    writer = csv.writer(sys.stdout, lineterminator="\n")
    picture = escape(answer.picture)
    if answer.error is not None:
        writer.writerow([picture, *[""] * (len(HEADINGS["numbers csv"]) - 2), answer.error])
    for number in answer.numbers:
        probability = round(number.probability, _NUM_DECIMALS)
        rejected = str(number.probability < answer.reject_below).lower()
        writer.writerow(
            [picture, number.text, probability, rejected, number.turned, *number.box, ""]
        )


def _print_numbers_json(answer: NumbersAnswer) -> None:
    line: dict[str, Any] = {"picture": answer.picture}
    if answer.error is not None:
        line["error"] = answer.error
    else:
        line["numbers"] = [number_facts(each, answer.reject_below) for each in answer.numbers]
    print(json.dumps(line))


PRINTERS: dict[str, Callable[[Any], None]] = {
    "digits": _print_text,
    "digits json": _print_json,
    "digits csv": _print_csv,
    "numbers": _print_numbers,
    "numbers json": _print_numbers_json,
    "numbers csv": _print_numbers_csv,
}
