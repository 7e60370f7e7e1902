"""Reads all the numbers in a picture: finds candidates for digits, classifies them, and chooses."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from serving.commandline.installation import not_installed
from serving.tensors import Images

if TYPE_CHECKING:
    from digit_classifier.predictions import Predictions
    from digit_reader.facts import Number
    from digit_reader.numbers import Reading

BATCH = 512
"""Images of one call; a page has some ten for each digit."""


class ClassifiesImages(Protocol):
    """A `Classifier`, or anything that classifies as it does."""

    def classify(self, images: npt.ArrayLike, /) -> "Predictions":
        """Classify (N, 784) uint8."""


def read_numbers(
    source: str | Path | BinaryIO, classifier: ClassifiesImages, pattern: str | None = None
) -> "list[Number]":
    r"""Read the numbers in a picture: a photo of a note, a scan of a form, chalk on a board.

    Ruled lines and the boxes of forms are left out, strokes that belong together are joined, and
    digits that touch are cut apart. What is no digit, such as a letter or a dot, is not read.

    Args:
        source: path or open binary file, as for `from_picture`.
        classifier: a `Classifier` of digits.
        pattern: a regular expression, such as `\d{2}/\d{2}/\d{4}`; only numbers that fit it are
            read. It may have digits, the marks `.` `,` `-` `/` `:`, blanks, letters (ink that is
            skipped), `\d`, `[ ]`, `( )`, `|`, `?`, `*`, `+` and `{2,4}`.

    Returns:
        The numbers, from the top to the bottom and from the left to the right, each with its text,
        its probability and its digits; empty if there is none.

    Raises:
        InvalidRequest: not a readable picture, or too large; or the classifier's images are not
            28 x 28; or the pattern is none.
        ConfigurationError: Pillow, SciPy or ONNX Runtime is not installed.
        ServingError: what `classify` raises.
    """
    return numbers_of(find_candidates(source), classifier.classify, pattern)


def numbers_of(
    reading: "Reading", classify: "Callable[[Images], Predictions]", pattern: str | None = None
) -> "list[Number]":
    """Classify the candidates and choose among them: the other part of `read_numbers`.

    Args:
        reading: what `find_candidates` returned.
        classify: see `Classifier.classify`; has at most BATCH images a call.
        pattern: see `read_numbers`.
    """
    if pattern is not None:
        from digit_reader.text.pattern import of_rows

        of_rows(pattern)  # refuses it, even if the page has no number
    images = reading.images
    if not len(images):
        return []
    starts = range(0, len(images), BATCH)
    answers = [classify(images[start : start + BATCH]) for start in starts]
    probabilities = np.concatenate([answer.probabilities for answer in answers])
    if pattern is None:
        return reading.numbers(probabilities)
    return reading.fitting_numbers(probabilities, pattern)


def find_candidates(source: str | Path | BinaryIO, most: float = math.inf) -> "Reading":
    """Find what may be digits in a picture: the part of `read_numbers` that needs no model.

    Args:
        source: path or open binary file.
        most: see `Reading`.

    Raises:
        InvalidRequest: not a readable picture, or too large, or it has too many candidates.
        ConfigurationError: Pillow, SciPy or ONNX Runtime is not installed.
    """
    try:
        from digit_reader import numbers
        from serving.pictures import decoder
    except ImportError as err:
        raise not_installed(err) from err
    return numbers.Reading(decoder.read_page(source), most)
