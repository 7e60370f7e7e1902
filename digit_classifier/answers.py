"""Reads the pictures that a command line names, on several cores, and prints the answers."""

import argparse
import csv
import json
import os
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from serving.commandline.progress import Bar
from serving.commandline.terminal import escape, silenced_stderr
from serving.errors import ConfigurationError
from serving.pictures.classifier import CLASS, LABEL, PROBABILITIES, Decoded, Steps
from serving.pictures.reader import SUFFIXES, processes, read_or_reason, silence_pillow
from serving.processes.pool import mapped
from serving.system.cores import usable_cores
from serving.telemetry import logs
from serving.tensors import Array

_NUM_DECIMALS = 6
MIN_PICTURES = 100
"""Fewer pictures are read in this process: others take 0.5 s to start, a picture 7 ms."""
AHEAD = 8
"""Pictures for each process that are read ahead of the answers."""

Reading = tuple[str, Any]
"""A picture's name, and its image, or the reason if there is none: a text."""
Reader = Callable[[Any], Any]
"""Makes something of a path or an open file; a function of a module, for processes to import."""

DIGIT_COLUMNS = ("picture", "digit", "probability", "rejected", "error", "label")


class PictureAnswer(NamedTuple):
    """The answer to a picture, in each format."""

    text: str
    facts: dict[str, Any]
    """For JSON."""
    rows: list[dict[str, object]]
    """For CSV."""


def decoded(steps: Steps, about: Any, source: Any) -> Decoded:
    """Read a picture's file, or an open one, by the steps beside a model."""
    from serving.pictures.decoder import read_bytes  # late: Pillow is an extra

    return steps.decode(about, read_bytes(source))


def digit_answer(outputs: Mapping[str, Array], reject_below: float) -> PictureAnswer:
    """Make the answer of `classify` from what the steps beside a model make of a row."""
    digit, label = int(outputs[CLASS][0]), outputs[LABEL][0]
    shares = outputs[PROBABILITIES][0]
    rejected = bool(shares[digit] < reject_below)
    probabilities = [round(p, _NUM_DECIMALS) for p in shares.tolist()]
    facts = {"digit": digit, "label": label, "probabilities": probabilities, "rejected": rejected}
    row = {"digit": digit, "probability": probabilities[digit], "rejected": as_word(rejected)}
    text = answer_text(escape(label), float(shares[digit]), rejected)
    return PictureAnswer(text, facts, [row | {"label": label}])


def answer_text(answer: str, probability: float, rejected: bool, more: str = "") -> str:
    """Write an answer as a line has it; `more` stands behind its probability."""
    shown = f"? (perhaps {answer}, " if rejected else f"{answer} ("
    return f"{shown}{probability * 100:.1f} %{more})"


def as_word(rejected: bool) -> str:
    """Write a flag as CSV has it: as JSON does."""
    return str(rejected).lower()


def print_answers(
    options: argparse.Namespace,
    columns: Sequence[str],
    reader: Reader,
    answer: Callable[[str, Any], PictureAnswer | str],
) -> int:
    """Read the pictures that the command line names, and print the answer to each at once.

    Args:
        options: the parsed command line.
        columns: those of a CSV table.
        reader: see `read`.
        answer: makes the answer of a picture's name and its reading; a text says why there is none.

    Returns:
        The exit code: 1 if any picture failed.

    Raises:
        ConfigurationError: the options name two formats.
    """
    if options.csv and options.json:
        raise ConfigurationError("--csv and --json exclude each other")
    found = find(options.pictures)
    # The terminal's encoding may not have every character of a file's name.
    if reconfigure := getattr(sys.stdout, "reconfigure", None):
        reconfigure(errors="backslashreplace")
    table = csv.DictWriter(sys.stdout, columns, lineterminator="\n") if options.csv else None
    if table is not None:
        table.writeheader()
    bar, num_failed = Bar(len(found), sys.stderr), 0
    with closing(read(found, reader)) as readings, ExitStack() as stack:
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
    picture: str, answer: PictureAnswer | str, table: "csv.DictWriter[str] | None", *, is_json: bool
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


def find(names: Sequence[str]) -> list[Reading | str]:
    """List the pictures: files in the order given, those in folders sorted, - for stdin.

    Returns:
        Names, and readings of files that are known to be unreadable.
    """
    found: list[Reading | str] = []
    for name in names:
        if not os.path.isdir(name):
            found.append(name)
            continue
        inside = list(_walk(name))
        found += inside or [(name, "no pictures in this folder")]
    return found


def _walk(folder: str) -> Iterator[Reading | str]:
    """List the pictures below a folder, sorted; skips hidden ones and links to folders."""
    refused: list[OSError] = []
    for path, folders, files in os.walk(folder, onerror=refused.append):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(files):
            if Path(name).suffix.lower() in SUFFIXES and not name.startswith("."):
                file = os.path.join(path, name)
                # A FIFO would never end.
                yield file if os.path.isfile(file) else (file, "cannot be read: not a regular file")
    yield from ((str(err.filename), f"cannot be read: {err.strerror}") for err in refused)


def read(found: Sequence[Reading | str], reader: Reader) -> Generator[Reading, None, None]:
    """Read pictures, and yield each once it and all before it are read.

    Where processes are used, a picture that crashes its process (out of memory, a decoder's fault)
    fails alone.
    """
    workers = usable_cores()
    if workers < 2 or len(found) < MIN_PICTURES:
        silence_pillow()
        for name in found:
            with silenced_stderr():  # libtiff's own output
                reading = _reading(reader, name)
            yield reading
        return
    names = [name if isinstance(name, str) else name[0] for name in found]
    with closing(processes(workers)) as pool:
        # Stdin is read here, since the processes have none.
        items = (_read(reader, name) if name == "-" else name for name in found)
        readings = mapped(pool, partial(_reading, reader), items, workers * AHEAD)
        for name, reading in zip(names, readings, strict=True):
            yield (name, reading) if isinstance(reading, str) else reading


def _reading(reader: Reader, found: Reading | str) -> Reading:
    return _read(reader, found) if isinstance(found, str) else found


def _read(reader: Reader, name: str) -> Reading:
    if name == "-" and sys.stdin is None:
        return name, "cannot be read: stdin is closed"
    return name, read_or_reason(reader, sys.stdin.buffer if name == "-" else name)
