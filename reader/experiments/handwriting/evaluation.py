"""Measures how often numbers are read correctly, and how often one is found where there is none."""

import io
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from digit_classifier import Classifier
from digit_reader import read_numbers
from experiments.handwriting.workers import on_all_cores
from experiments.synthetic.drawing import FONTS
from experiments.synthetic.forms import FORMS
from experiments.synthetic.hands import Writers
from experiments.synthetic.pages import EMPTY, FIELDS, any_paper, form, without_digits, written
from experiments.synthetic.papers import file_of, lay, on_paper, squared
from experiments.synthetic.strings import Composed, random_string
from experiments.synthetic.tables import photograph_of_sheet
from experiments.synthetic.texts import TEXTS, TOUCHING, by_fonts
from training.data.mnist import Examples


class Outcome(NamedTuple):
    """The reading of one page."""

    row: str
    """The kind of page."""
    is_right: bool
    """Exactly the number that is there was read; or none, where none is."""
    probability: float
    """Probability of the reading; 0 if there is none."""
    text: str
    read: str


def _gaps(digits: Examples, rng: np.random.Generator) -> Composed:
    return random_string(digits, rng, 1, 10)


def _apart(digits: Examples, rng: np.random.Generator) -> Composed:
    return _first(lambda: random_string(digits, rng, -4, 10), lambda made: not made.touches)


def _touching(digits: Examples, rng: np.random.Generator) -> Composed:
    return _first(lambda: random_string(digits, rng, -4, 10), lambda made: made.touches)


def _first(make: Callable[[], Composed], is_wanted: Callable[[Composed], bool]) -> Composed:
    while True:
        if is_wanted(made := make()):
            return made


COMPOSED: dict[str, Callable[[Examples, np.random.Generator], Composed]] = {
    "gaps of 1 to 10 pixels": _gaps,
    "gaps of -4 to 10 pixels, none touches": _apart,
    "gaps of -4 to 10 pixels, a pair touches": _touching,
    "boxes of a form": lambda digits, rng: form(digits, rng),
    "round boxes, lines and combs": lambda digits, rng: form(
        digits, rng, str(rng.choice(FIELDS[1:]))
    ),
    "pen strokes and fonts": lambda _, rng: written(rng, FONTS),
}
"""Pages with a number of digits next to each other on them."""
SHEETS = "sheets on tables"
OTHER_HANDS = "fonts of handwriting"
"""Only measured where there are such fonts."""
SQUARED = "squared paper"
_BY_HANDS = {**TEXTS, **FORMS, **TOUCHING, OTHER_HANDS: by_fonts}
ROWS = (*COMPOSED, *TEXTS, SHEETS, *FORMS, *TOUCHING, SQUARED)
"""Pages with digits on them."""
KINDS = (*COMPOSED, *EMPTY, *TEXTS, SHEETS, *FORMS, *TOUCHING, OTHER_HANDS, SQUARED)
"""Their order decides the pages."""


def measure(
    digits: Examples,
    number: int,
    seed: int,
    kinds: Sequence[str],
    fonts: Sequence[Path],
) -> Iterator[Outcome]:
    """Read many random pages with the pretrained model, on all cores.

    Args:
        digits: MNIST's, that are on the pages.
        number: of pages of each kind.
        seed: decides the pages.
        kinds: of KINDS.
        fonts: of handwriting, for OTHER_HANDS.
    """
    tasks = [(name, seed, page) for name in kinds for page in range(number)]
    return on_all_cores(partial(_outcome, fonts), digits, tasks)


def _outcome(
    fonts: Sequence[Path], digits: Examples, classifier: Classifier, task: tuple[str, int, int]
) -> Outcome:
    name, seed, number = task
    rng = np.random.default_rng([seed, KINDS.index(name), number])
    picture, text = picture_of(name, digits, rng, fonts)
    found = read_numbers(picture, classifier)
    read = " ".join(number.text for number in found)
    probability = float(np.prod([number.probability for number in found])) if found else 0.0
    return Outcome(name, read == text, probability, text, read)


def picture_of(
    name: str, digits: Examples, rng: np.random.Generator, fonts: Sequence[Path] = ()
) -> tuple[io.BytesIO, str]:
    """Make a picture file of a kind, and the text on it: "" if there is none."""
    if name in EMPTY:
        return file_of(without_digits(name, rng)), ""
    if name == SHEETS:
        return photograph_of_sheet(Writers(digits), rng)
    if name == SQUARED:
        made = _gaps(digits, rng)
        ink = np.pad(made.ink, rng.integers(0, 150, (2, 2)))
        return file_of(on_paper(ink, squared, rng)), made.text
    if name in COMPOSED:
        made = COMPOSED[name](digits, rng)
        return file_of(any_paper(made.ink, rng)), made.text
    writers = Writers(digits, fonts=fonts) if name == OTHER_HANDS else Writers(digits)
    made = _BY_HANDS[name](writers, rng)
    is_white = name == "small print" or rng.random() < 0.5
    return file_of(lay(made.ink, "white", rng) if is_white else any_paper(made.ink, rng)), made.text
