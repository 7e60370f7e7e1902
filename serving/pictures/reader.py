"""Reads picture files as the input of a classifier, of digits or of anything else."""

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar

from serving.applications import installed, modules_of
from serving.commandline.installation import install
from serving.errors import ConfigurationError, InvalidRequest
from serving.predictions import Images

SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".gif", ".tif", ".tiff", ".bmp"),
    *(".avif", ".heic", ".heif"),
)
"""Files that are read in a folder; a file that the command line names may have any suffix."""

_Source = TypeVar("_Source")
_Read = TypeVar("_Read")


def read_or_reason(read: Callable[[_Source], _Read], source: _Source) -> _Read | str:
    """Read a picture, or say in a line why it can't be read."""
    try:
        return read(source)
    except InvalidRequest as err:
        return str(err)
    except MemoryError:
        return "cannot be read: out of memory"


def image_or_reason(content: bytes) -> Images | str:
    """Read a picture of a digit, or say why not; here, since processes import a job's module."""
    return read_or_reason(from_picture, io.BytesIO(content))


def processes(number: int) -> "Processes":
    """Make processes that read pictures, one at a time each; they start with the first one."""
    from serving.system.processes import Processes  # who reads one picture needs none

    return Processes(number, ("digit_classifier.normalizer", *modules_of(JUDGES)))


if TYPE_CHECKING:
    from serving.model.preprocessing import Preprocessing
    from serving.pictures.decoder import Page
    from serving.system.processes import Processes
    from serving.tensors import Array

JUDGES = "digit_classifier.judges"
"""The group of the entry point `judge`, a `Judge`."""


class Judge(Protocol):
    """Decides whether a picture shows one digit; without one every picture does."""

    def __call__(self, page: "Page", images: Images, /) -> tuple[int, float]:
        """Judge the images that were made of a picture.

        Args:
            page: the picture.
            images: (N, 28, 28): one, or two if the first may lack ink at the picture's edges.

        Returns:
            The index of the right one, and a factor for the probabilities of its classes: less than
            1 if it may be no digit.

        Raises:
            InvalidRequest: it is no digit, or there are several.
        """


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
        digit, but a letter or a scribble. Always 1 if no `Judge` is installed.
    """
    try:
        from digit_classifier import normalizer
        from serving.pictures import decoder
    except ImportError as err:
        raise _missing() from err
    page = decoder.read_page(source, decoder.MAX_SIDE)
    images = normalizer.to_images(page.grey)
    judge: Judge | None = installed(JUDGES).get("judge")
    is_as_mnist = len(images) == 1 and page.grey.shape == images[0].shape
    # The last one is right more often: of digits cut out along their ink 187 of 200, not 174.
    chosen, factor = (-1, 1.0) if is_as_mnist or judge is None else judge(page, images)
    return images[chosen].reshape(1, -1), factor


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
        from serving.pictures import decoder
    except ImportError as err:
        raise _missing() from err
    pixels = decoder.read_pixels(
        source, known.size, known.channels, known.resize, invert=known.invert
    )
    return known.row(pixels), 1.0


def _missing() -> ConfigurationError:
    return ConfigurationError(f"pictures need Pillow and SciPy: {install('pictures')}")
