"""Images as MNIST has them: 784 bytes, row-major 28 x 28, 0 = background, 255 = ink."""

from typing import Any

import numpy as np
import numpy.typing as npt

from serving.errors import InvalidRequest

HEIGHT = WIDTH = 28
IMAGE_BYTES = HEIGHT * WIDTH

_MAX_SHOWN_CHARACTERS = 80
"""Texts that come from a caller's objects are cut to this length in errors."""

Images = npt.NDArray[np.uint8]


def as_images(array: npt.ArrayLike, max_images: int | None = None) -> Images:
    """Check an array of images and flatten it, without copying where the memory allows.

    Args:
        array: (N, 784) or (N, 28, 28) uint8, N >= 1.
        max_images: the largest N accepted; None for no limit.

    Returns:
        (N, 784) uint8, C-contiguous.

    Raises:
        InvalidRequest: not an array, wrong dtype or shape, no images, or more than max_images.
            Floats are refused because they may be 0..1 or 0..255.
    """
    images = _as_array(array)
    if images.dtype != np.uint8:
        raise InvalidRequest(
            "expected uint8 pixels (0 = background, 255 = ink), "
            f"got {str(images.dtype)[:_MAX_SHOWN_CHARACTERS]}"
        )
    if images.shape[1:] not in ((IMAGE_BYTES,), (HEIGHT, WIDTH)):
        raise InvalidRequest(
            f"expected images of shape (N, 784) or (N, 28, 28), got {images.shape}"
        )
    check_count(len(images), max_images)
    return np.ascontiguousarray(images.reshape(len(images), IMAGE_BYTES))


def _as_array(array: npt.ArrayLike) -> npt.NDArray[Any]:
    if type(array) is np.ndarray:
        return array
    try:
        images = np.asarray(array)
    except MemoryError:
        raise
    except Exception as err:  # ragged lists, and anything that an object's __array__ raises
        reason = " ".join(str(err).split())[:_MAX_SHOWN_CHARACTERS]
        raise InvalidRequest(
            f"expected an array of images, got a {type(array).__name__}: {reason}"
        ) from err
    if np.ma.is_masked(array):
        raise InvalidRequest("expected an array without masked pixels: fill them first")
    return images


def from_bytes(data: bytes | memoryview, max_images: int | None = None) -> Images:
    """View N x 784 bytes as images, without copying.

    Args:
        data: N x 784 bytes, N >= 1.
        max_images: the largest N accepted; None for no limit.

    Returns:
        (N, 784) uint8, read-only.

    Raises:
        InvalidRequest: empty, not a multiple of 784 bytes, or more than max_images.
    """
    check_bytes(len(data), max_images)
    return np.frombuffer(data, np.uint8).reshape(-1, IMAGE_BYTES)


def check_bytes(num_bytes: int, max_images: int | None) -> None:
    """Check that a number of bytes is that of 1 to max_images images (None for no limit).

    Raises:
        InvalidRequest: it is not; the text says what was expected and what came.
    """
    num_images, rest = divmod(num_bytes, IMAGE_BYTES)
    if rest:
        raise InvalidRequest(f"expected N x {IMAGE_BYTES} bytes of images, got {num_bytes}")
    check_count(num_images, max_images)


def check_count(num_images: int, max_images: int | None) -> None:
    """Check that a request has 1 to max_images images (None for no limit).

    Raises:
        InvalidRequest: the number is out of range; the text names it and the limit.
    """
    if num_images == 0:
        raise InvalidRequest("expected at least 1 image, got 0")
    if max_images is not None and num_images > max_images:
        raise InvalidRequest(f"expected at most {max_images} images in a request, got {num_images}")
