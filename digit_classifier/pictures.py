"""Pictures of one digit: finds it, and makes an image of it as MNIST has them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from serving.applications import installed, modules_of
from serving.commandline.installation import not_installed
from serving.pictures.reader import read_or_reason

if TYPE_CHECKING:
    from serving.pictures.decoder import Page
    from serving.tensors import Images

SIZE, CHANNELS = (28, 28), 1
"""The images that it makes; see `serving.applications.PictureTreatment`."""
HANDLER = "digit_classifier.handler:DigitPictures"
JUDGES = "digit_classifier.judges"
"""The group of the entry point `judge`, a `Judge`."""


class Judge(Protocol):
    """Decides whether a picture shows one digit; without one every picture does."""

    def __call__(self, page: "Page", images: "Images", /) -> tuple[int, float]:
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


def modules() -> Sequence[str]:
    """Return the imports of processes that find digits."""
    return ("digit_classifier.handler", "digit_classifier.normalizer", *modules_of(JUDGES))


def from_picture(source: str | Path | BinaryIO) -> "Images":
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


def image_or_reason(content: bytes) -> "Images | str":
    """Read a picture of a digit, or say why not; here, since processes import a job's module."""
    return read_or_reason(from_picture, io.BytesIO(content))


def read_digit(source: str | Path | BinaryIO) -> "tuple[Images, float]":
    """Make an image of a picture, as `from_picture` does.

    Returns:
        The image, and a factor for the probabilities of its classes: less than 1 if it may be no
        digit, but a letter or a scribble. Always 1 if no `Judge` is installed.
    """
    try:
        from digit_classifier import normalizer
        from serving.pictures import decoder
    except ImportError as err:
        raise not_installed(err) from err
    page = decoder.read_page(source, decoder.MAX_SIDE)
    images = normalizer.to_images(page.grey)
    judge: Judge | None = installed(JUDGES).get("judge")
    is_as_mnist = len(images) == 1 and page.grey.shape == images[0].shape
    # The last one is right more often: of digits cut out along their ink 187 of 200, not 174.
    chosen, factor = (-1, 1.0) if is_as_mnist or judge is None else judge(page, images)
    return images[chosen].reshape(1, -1), factor
