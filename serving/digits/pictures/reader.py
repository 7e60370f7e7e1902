"""Reads picture files: as a classifier's input, or all the numbers of a page."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from serving.commandline.installation import install
from serving.errors import ConfigurationError, InvalidRequest
from serving.images import Images

if TYPE_CHECKING:
    from digit_reader.facts import Number
    from digit_reader.numbers import Reading
    from serving.model.preprocessing import Preprocessing
    from serving.predictions import Predictions
    from serving.tensors import Array

MIN_ODDS = -15.0
"""The log odds from which something alone may be a digit."""
SURE_ODDS = 2.0
"""From which it is one. Between the two its answer is doubted, and a picture that reads as several
digits in a row is refused: 146 of 150 numbers with a touching pair are, and none of 750 single
digits."""
TINY, TINY_FACTOR = 12, 0.9
"""Pixels of a side: of digits that fill 10 x 10 pixels 4 % are wrong, 2 % of the sure ones."""
BATCH = 512
"""Images of one call; a page has some ten for each digit."""


class ClassifiesImages(Protocol):
    """A `Classifier` or a `Client`."""

    def classify(self, images: npt.ArrayLike, /) -> "Predictions":
        """Classify (N, 784) uint8."""


def from_picture(source: str | Path | BinaryIO) -> Images:
    """Make an image like MNIST's of a picture of one digit.

    Args:
        source: path or open binary file: PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF if Pillow reads it,
            HEIC if pillow-heif is installed; any size, colour or alpha, dark ink on light or the
            reverse. The digit may have a frame around it.

    Returns:
        (1, 784) uint8. A 28 x 28 picture that is scaled and centred like MNIST's stays unchanged.

    Raises:
        InvalidRequest: not a readable picture, too large, blank, or of several digits.
        ConfigurationError: Pillow or SciPy is not installed.
    """
    return read_digit(source)[0]


def read_digit(source: str | Path | BinaryIO) -> tuple[Images, float]:
    """Make an image of a picture, as `from_picture` does.

    Returns:
        The image, and a factor for the probabilities of its classes: less than 1 if it may be no
        digit, but a letter or a scribble.
    """
    try:
        from digit_reader import numbers, rejecter
        from serving.digits.pictures import decoder, normalizer
    except ImportError as err:
        raise _missing() from err
    page = decoder.read_page(source, decoder.MAX_SIDE)
    images = normalizer.to_images(page.grey)
    if len(images) == 1 and page.grey.shape == images[0].shape:
        return images.reshape(1, -1), 1.0
    odds = rejecter.odds(rejecter.logits_alone(images))
    is_sure = odds[-1] >= SURE_ODDS
    best = -1 if is_sure else int(odds.argmax())
    if odds[best] < MIN_ODDS or (not is_sure and numbers.has_several_digits(page)):
        raise InvalidRequest("expected one digit, found several that touch, or no digit")
    factor = min((1 + math.exp(-SURE_ODDS)) / (1 + math.exp(-odds[best])), 1.0)
    if max(page.grey.shape) <= TINY:
        factor *= TINY_FACTOR
    return images[best].reshape(1, -1), factor


def picture_row(
    preprocessing: "Preprocessing", source: str | Path | BinaryIO
) -> "tuple[Array, float]":
    """Make the input of a classifier of a picture, as its manifest or its folder says it.

    Returns:
        (1, ...), as `Preprocessing.row` does, and a factor for the probabilities: see `read_digit`;
        1 for other classifiers.

    Raises:
        InvalidRequest: not a readable picture, or too large; of digits, see `from_picture`.
        ConfigurationError: Pillow or SciPy is not installed.
    """
    known = preprocessing
    if known.resize == "digits":
        image, factor = read_digit(source)
        return known.row(image.reshape(*known.size, 1)), factor
    try:
        from serving.digits.pictures import decoder
    except ImportError as err:
        raise _missing() from err
    pixels = decoder.read_pixels(
        source, known.size, known.channels, known.resize, invert=known.invert
    )
    return known.row(pixels), 1.0


def read_numbers(
    source: str | Path | BinaryIO, classifier: ClassifiesImages, pattern: str | None = None
) -> "list[Number]":
    r"""Read the numbers in a picture: a photo of a note, a scan of a form, chalk on a board.

    Ruled lines and the boxes of forms are left out, strokes that belong together are joined, and
    digits that touch are cut apart. What is no digit, such as a letter or a dot, is not read.

    Args:
        source: path or open binary file, as for `from_picture`.
        classifier: a `Classifier` or a `Client`, of digits.
        pattern: a regular expression, such as `\d{2}/\d{2}/\d{4}`; only numbers that fit it are
            read. It may have digits, the marks `.` `,` `-` `/` `:`, blanks, letters (ink that is
            skipped), `\d`, `[ ]`, `( )`, `|`, `?`, `*`, `+` and `{2,4}`.

    Returns:
        The numbers, from the top to the bottom and from the left to the right, each with its text,
        its probability and its digits; empty if there is none.

    Raises:
        InvalidRequest: not a readable picture, or too large; or the classifier's images are not
            28 x 28; or the pattern is none.
        ConfigurationError: Pillow or SciPy is not installed.
        DigitsError: what `classify` raises.
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
        ConfigurationError: Pillow or SciPy is not installed.
    """
    try:
        from digit_reader import numbers
        from serving.digits.pictures import decoder
    except ImportError as err:
        raise _missing() from err
    return numbers.Reading(decoder.read_page(source), most)


def _missing() -> ConfigurationError:
    return ConfigurationError(f"pictures need Pillow and SciPy: {install('pictures')}")
