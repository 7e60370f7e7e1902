"""Reads one digit from a picture file: decodes it and normalizes it to an image like MNIST's."""

from pathlib import Path
from typing import BinaryIO

from serving.errors import ConfigurationError
from serving.images import Images


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
    try:
        from serving.pictures import decoder, normalizer
    except ImportError as err:
        raise ConfigurationError(
            "pictures need Pillow and SciPy: pip install 'digit-serving[pictures]'"
        ) from err
    return normalizer.to_image(decoder.read_grey(source)).reshape(1, -1)
