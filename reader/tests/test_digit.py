"""The judge of pictures of one digit, which digit-serving asks."""

import io
import os
from typing import Any

import numpy as np
import numpy.typing as npt

from digit_classifier.pictures import from_picture, image_or_reason, read_digit
from experiments.synthetic.drawing import font_glyph, png
from experiments.synthetic.strings import random_string
from serving.errors import InvalidRequest
from serving.pictures.reader import processes
from training.data.mnist import Mnist


def is_refused_as_several(ink: npt.NDArray[np.uint8]) -> bool:
    try:
        from_picture(io.BytesIO(png(255 - ink)))
    except InvalidRequest as err:
        return str(err).startswith("expected one digit, found ")
    return False


def test_most_touching_pairs_are_refused(mnist_sample: Mnist) -> None:
    rng = np.random.default_rng(4)
    pairs = [random_string(mnist_sample.test, rng, -3, 0) for _ in range(400)]
    touching = [pair for pair in pairs if len(pair.text) == 2 and pair.touches]
    refused = sum(is_refused_as_several(pair.ink) for pair in touching)
    assert len(touching) > 12
    assert refused > 0.65 * len(touching)  # 91 % of 150


def test_letters_are_doubted_and_digits_are_not() -> None:
    rng = np.random.default_rng(1)

    def factor(text: str) -> float:
        try:
            return read_digit(io.BytesIO(png(255 - np.asarray(font_glyph(text, 60, rng)))))[1]
        except InvalidRequest:  # a letter such as M may look like several digits
            return 0.0

    assert np.mean([factor(digit) == 1 for digit in "0123456789" * 2]) >= 0.9
    assert np.mean([factor(letter) < 0.2 for letter in "AEFHKNRTVX" * 2]) >= 0.9


def test_process_that_judged_a_picture_has_room_for_the_next(mnist_sample: Mnist) -> None:
    picture = png(np.pad(mnist_sample.test_images[0].reshape(28, 28), 9))
    pool = processes(1)
    jobs: list[Any] = [(os.getpid,), (image_or_reason, picture)]
    before, _, after, image = [pool.submit("", *job).result() for job in jobs * 2]
    pool.close()
    assert before == after != os.getpid()
    assert image.shape == (1, 784)
