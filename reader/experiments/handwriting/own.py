"""How much `train --extra` gains for a person with an odd hand, drawn by pen tracks."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
from PIL import Image

from digit_classifier import Classifier
from experiments.synthetic.drawing import STROKES, moved, pen_glyph, png, tracks
from training.config import RECIPES
from training.data import extra
from training.data.mnist import Examples, Mnist
from training.fitting.artifacts import load_model
from training.fitting.evaluation import probabilities
from training.fitting.train import train

FORMS = {
    0: ["3,0 1,2 0,5 1,8 3,10 5,8 6,5 5,2 3,0|6,0 0,10"],
    1: ["0,6 4,0 4,0 4,10", "0,5 3,0 3,0 3,10|0,10 6,10", "0,8 5,0 5,0 5,10"],
    7: ["0,2 0,0 0,0 6,0 6,0 2,10|0,5 5,5", "0,3 1,0 3,1 6,0 6,0 3,5 3,10|0,6 6,4"],
}
"""Forms that are rare in MNIST; the other digits have those of STROKES."""

NUM_TRAINING, NUM_OTHERS = 200, 600
"""The pictures to train with, of which `--extra` holds out a fifth, and those to measure with."""


class Hand:
    """A slant, a pen, and one form of each digit."""

    def __init__(self, seed: int) -> None:
        rng = np.random.default_rng(seed)
        self._slant = rng.choice((-1, 1)) * rng.uniform(0.35, 0.6)
        self._width, self._turn = rng.uniform(0.7, 1.1), rng.uniform(-8, 8)
        self._pen = rng.uniform(0.03, 0.11)
        self._lines = [
            [moved(line, 0.6, rng) for line in tracks(str(rng.choice(FORMS.get(digit, usual))))]
            for digit, usual in enumerate(STROKES)
        ]

    def glyph(self, digit: int, rng: np.random.Generator) -> Image.Image:
        """Write a digit, each time a little differently: ink is 255."""
        height = int(np.exp(rng.uniform(np.log(40), np.log(120))))
        angle = np.deg2rad(self._turn + rng.normal(0, 4))
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        width, slant = self._width * rng.uniform(0.9, 1.1), self._slant + rng.normal(0, 0.06)
        shape = turn @ np.array([[width, -slant], [0, 1]])
        pen = self._pen * np.exp(rng.normal(0, 0.15))
        return pen_glyph(self._lines[digit], height, shape, pen, rng)

    def save(self, number: int, folder: Path, seed: int) -> None:
        """Save pictures as FOLDER/DIGIT/NUMBER.png, of each digit equally many."""
        rng = np.random.default_rng(seed)
        for place in range(number):
            path = folder / str(place % 10) / f"{place}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(255 - np.asarray(self.glyph(place % 10, rng))))


class Gain(NamedTuple):
    """The errors of the bundled model and of one trained further, and the cost of that."""

    own_before: int
    own_after: int
    mnist_before: int
    mnist_after: int
    seconds: float
    cpu_seconds: float


def measure(mnist: Mnist, digits: Examples, hand: int, seeds: Iterable[int]) -> Iterator[Gain]:
    """Train with the pictures of a hand, and count errors.

    Args:
        mnist: to train with, too.
        digits: MNIST's, to count errors in.
        hand: its number.
        seeds: of the trainings.
    """
    with TemporaryDirectory() as name, Classifier.pretrained() as classifier:
        folder = Path(name)
        Hand(hand).save(NUM_TRAINING, folder / "own", 0)
        Hand(hand).save(NUM_OTHERS, folder / "others", 1)
        found = extra.load(folder / "others")
        others = Examples(*map(np.concatenate, zip(found.training, found.held_out, strict=True)))
        sets = (others, digits)
        before = [_errors(each, classifier.classify(each.images).probabilities) for each in sets]
        for seed in seeds:
            wall, cpu = time.monotonic(), time.process_time()
            own = extra.load(folder / "own")
            train(RECIPES["fine-tune"], mnist, folder, seed=seed, extra=own)
            wall, cpu = time.monotonic() - wall, time.process_time() - cpu
            model = load_model(folder)
            after = [_errors(each, probabilities(model, each.images)) for each in sets]
            yield Gain(before[0], after[0], before[1], after[1], wall, cpu)


def _errors(examples: Examples, answers: np.ndarray) -> int:
    return int((answers.argmax(axis=1) != examples.labels).sum())
