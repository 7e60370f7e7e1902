"""Prints the answers of `classify` and `read` as they come, with a progress bar."""

import argparse
import csv
import json
import math
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from typing import Any, NamedTuple

from serving.cli import picture_files
from serving.commandline.escape import escape
from serving.commandline.progress import Bar
from serving.errors import ConfigurationError
from serving.pictures.facts import Box, Number, number_facts
from serving.predictions import Predictions
from serving.telemetry import logs

_NUM_DECIMALS = 6
DIGIT_COLUMNS = ("picture", "digit", "probability", "rejected", "error", "label")
NUMBER_COLUMNS = ("picture", "text", "probability", "rejected", "turned", *Box._fields, "error")


class Answer(NamedTuple):
    """The answer to a picture, in each format."""

    text: str
    facts: dict[str, Any]
    """For JSON."""
    rows: list[dict[str, object]]
    """For CSV."""


def digit_answer(predictions: Predictions, *, rejected: bool) -> Answer:
    """Make the answer of `classify` from predictions of one row."""
    digit, label = int(predictions.digits[0]), predictions.labels[0]
    probabilities = [round(p, _NUM_DECIMALS) for p in predictions.probabilities[0].tolist()]
    facts = {"digit": digit, "label": label, "probabilities": probabilities, "rejected": rejected}
    row = {"digit": digit, "probability": probabilities[digit], "rejected": _word(rejected)}
    text = _text(escape(label), float(predictions.probabilities[0, digit]), rejected)
    return Answer(text, facts, [row | {"label": label}])


def numbers_answer(numbers: Sequence[Number], reject_below: float) -> Answer:
    """Make the answer of `read` from the numbers of a picture, at least one."""
    facts = [number_facts(number, reject_below) for number in numbers]
    certain = math.prod(number.probability for number in numbers)
    rejected = any(fact["rejected"] for fact in facts)
    words, turned = " ".join(number.text for number in numbers), numbers[0].turned
    text = _text(words, certain, rejected, f", turned by {turned}°" if turned else "")
    rows = [
        {name: fact[name] for name in ("text", "probability", "turned")}
        | {"rejected": _word(fact["rejected"]), **fact["box"]}
        for fact in facts
    ]
    return Answer(text, {"numbers": facts}, rows)


def _text(answer: str, probability: float, rejected: bool, more: str = "") -> str:
    shown = f"? (perhaps {answer}, " if rejected else f"{answer} ("
    return f"{shown}{probability * 100:.1f} %{more})"


def _word(rejected: bool) -> str:
    return str(rejected).lower()


def print_answers(
    options: argparse.Namespace,
    columns: Sequence[str],
    reader: Callable[[Any], Any],
    answer: Callable[[str, Any], Answer | str],
) -> int:
    """Read the pictures that the command line names, and print the answer to each at once.

    Args:
        options: the parsed command line.
        columns: those of a CSV table.
        reader: see `picture_files.read`.
        answer: makes the answer of a picture's name and of what `reader` returns; a text says why
            there is none.

    Returns:
        The exit code: 1 if any picture failed.

    Raises:
        ConfigurationError: the options name two formats.
    """
    if options.csv and options.json:
        raise ConfigurationError("--csv and --json exclude each other")
    found = picture_files.find(options.pictures)
    # The terminal's encoding may not have every character of a file's name.
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="backslashreplace")
    table = csv.DictWriter(sys.stdout, columns, lineterminator="\n") if options.csv else None
    if table is not None:
        table.writeheader()
    bar, num_failed = Bar(len(found), sys.stderr), 0
    with closing(picture_files.read(found, reader)) as readings, ExitStack() as stack:
        stack.callback(bar.clear)
        for picture, reading in readings:
            answered = reading if isinstance(reading, str) else answer(picture, reading)
            num_failed += isinstance(answered, str)
            bar.clear()
            _print(picture, answered, table, is_json=options.json)
            if sys.stdout is not None:
                sys.stdout.flush()
            bar.advance()
    if num_failed and len(found) > 1:  # a file or a pager may hide the lines
        logs.print_line(f"{num_failed} of {len(found)} failed", sys.stderr)
    return 1 if num_failed else 0


def _print(
    picture: str, answer: Answer | str, table: "csv.DictWriter[str] | None", *, is_json: bool
) -> None:
    error = answer if isinstance(answer, str) else None
    if table is not None:
        rows = [{"error": error}] if isinstance(answer, str) else answer.rows
        table.writerows({"picture": escape(picture), **row} for row in rows)
    elif is_json:
        facts = {"error": error} if isinstance(answer, str) else answer.facts
        print(json.dumps({"picture": picture, **facts}))
    elif isinstance(answer, str):
        print(f"{escape(picture)}: {escape(answer)}", file=sys.stderr)
    else:
        print(f"{escape(picture)}: {answer.text}")
