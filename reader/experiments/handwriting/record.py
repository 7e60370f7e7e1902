"""Records every answer to synthetic pictures, to show that a change of the code changes none."""

import hashlib
import io
import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from digit_classifier import Classifier
from digit_classifier.pictures import read_digit
from digit_reader.reader import find_candidates, numbers_of
from experiments.handwriting.evaluation import KINDS, OTHER_HANDS, picture_of
from experiments.handwriting.workers import on_all_cores
from experiments.synthetic.drawing import POPULATIONS, draw
from serving.errors import InvalidRequest
from training.data.mnist import Examples

PATTERN = r"-?\d+([.,]\d+)?"
PAGES = [kind for kind in KINDS if kind != OTHER_HANDS]
SINGLE = [(population, on_paper) for population in POPULATIONS for on_paper in (False, True)]

Answers = dict[str, Any]


def answers(digits: Examples, number: int, seed: int) -> Iterator[Answers]:
    """Read `number` pages of each kind, and pictures of one digit, in each way that there is."""
    kinds = [*PAGES, *(f"{name}, {'paper' if on_paper else 'white'}" for name, on_paper in SINGLE)]
    tasks = [(kind, seed, page) for kind in kinds for page in range(number)]
    return on_all_cores(_answers, digits, tasks)


def _answers(digits: Examples, classifier: Classifier, task: tuple[str, int, int]) -> Answers:
    kind, seed, page = task
    if kind in PAGES:
        rng = np.random.default_rng([seed, PAGES.index(kind), page])
        content = picture_of(kind, digits, rng)[0].getvalue()
    else:
        population, _, paper = kind.partition(", ")
        (*_, (_, content)) = draw(population, page % 10 + 1, seed + page, on_paper=paper == "paper")
    found = find_candidates(io.BytesIO(content))
    drawn = []
    if len(found.images):
        drawn = found.drawn_numbers(classifier.classify(found.images).probabilities)
    try:
        image, factor = read_digit(io.BytesIO(content))
        alone: Any = [hashlib.sha256(image.tobytes()).hexdigest(), factor]
    except InvalidRequest as err:
        alone = str(err)
    return {
        "page": f"{kind} {page}",
        "picture": hashlib.sha256(content).hexdigest(),
        "numbers": [asdict(each) for each in numbers_of(found, classifier.classify)],
        "fitting": [asdict(each) for each in numbers_of(found, classifier.classify, PATTERN)],
        "drawn": [asdict(each) for each in drawn],
        "digit": alone,
    }


def as_line(record: Answers) -> str:
    """Write a record as a line of JSON, with floats as exact as they are."""
    return json.dumps(record, default=lambda image: hashlib.sha256(image).hexdigest())


def compare(one: Path, other: Path) -> tuple[list[str], float]:
    """Return the pages whose answers differ in more than floats, and the largest difference."""
    pairs = zip(*(path.read_text().splitlines() for path in (one, other)), strict=True)
    differing, largest = [], 0.0
    for before, after in ((json.loads(line), json.loads(same)) for line, same in pairs):
        difference = _difference(before, after)
        if math.isinf(difference):
            differing.append(str(after["page"]))
        else:
            largest = max(largest, difference)
    return differing, largest


def _difference(one: Any, other: Any) -> float:
    """Return the largest difference of two floats at one place; infinity if others differ."""
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other)
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return max((_difference(one[name], other[name]) for name in one), default=0.0)
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        return max(map(_difference, one, other), default=0.0)
    return 0.0 if one == other else math.inf
