"""Pictures of one digit: finds it, and makes an image of it as MNIST has them."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from serving.commandline.installation import not_installed
from serving.pictures.reader import read_or_reason

if TYPE_CHECKING:
    from serving.tensors import Images

SIZE, CHANNELS = (28, 28), 1
"""The images that it makes; see `serving.applications.PictureTreatment`."""
STEPS = "digit_classifier.handler:STEPS"


def modules() -> Sequence[str]:
    """Return the imports of processes that find digits."""
    return ("digit_classifier.handler", "digit_classifier.normalizer")


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
    try:
        # Late: Pillow and SciPy are an extra, and an error says which is missing.
        from digit_classifier import normalizer
        from serving.pictures import decoder
    except ImportError as err:
        raise not_installed(err) from err
    page = decoder.read_page(source, decoder.MAX_SIDE)
    # The last one is right more often: of digits cut out along their ink 187 of 200, not 174.
    image: Images = normalizer.to_images(page.grey)[-1]
    return image.reshape(1, -1)


def image_or_reason(content: bytes) -> "Images | str":
    """Read a picture of a digit, or say why not; here, since processes import a job's module."""
    return read_or_reason(from_picture, io.BytesIO(content))
