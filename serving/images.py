"""Images: bytes, row-major; those of digits are as MNIST has them, 28 x 28, 0 = background."""

import sys

import numpy as np
import numpy.typing as npt

from serving.errors import InvalidRequest
from serving.signature import Signature
from serving.tensors import to_array

_MAX_SHOWN_CHARACTERS = 80
"""Texts that come from a caller's objects are cut to this length in errors."""

_UINT8 = np.dtype(np.uint8)

Images = npt.NDArray[np.uint8]


def as_images(array: npt.ArrayLike, signature: Signature, max_images: int | None = None) -> Images:
    """Check an array of images and flatten it, without copying where the memory allows.

    Args:
        array: (N, pixels) or (N, *input_shape) uint8, N >= 1.
        signature: of the model.
        max_images: the largest N accepted; None for no limit.

    Returns:
        (N, pixels) uint8, C-contiguous.

    Raises:
        InvalidRequest: not an array, wrong dtype or shape, no images, or more than max_images.
    """
    size, shape = signature.image_bytes, signature.input_shape
    if (  # the usual case: half a microsecond instead of one
        type(array) is np.ndarray
        and array.dtype is _UINT8
        and (array.shape[1:] == (size,) or array.shape[1:] == shape)
        and 0 < len(array) <= (max_images or sys.maxsize)
        and array.flags.c_contiguous
    ):
        return array if array.ndim == 2 else array.reshape(len(array), size)
    images = as_pixels(array)
    if images.shape[1:] != (size,):
        if images.shape[1:] != shape:
            sizes = ", ".join(map(str, shape))
            also = f" or (N, {sizes})" if len(shape) > 1 else ""
            raise InvalidRequest(f"expected images of shape (N, {size}){also}, got {images.shape}")
        images = images.reshape(len(images), size)
    check_count(len(images), max_images)
    return np.ascontiguousarray(images)


def as_pixels(array: npt.ArrayLike) -> Images:
    """Check the images of any model: they are an array of uint8.

    Raises:
        InvalidRequest: not an array, or another dtype. Floats are refused because they may be 0..1
            or 0..255.
    """
    images = to_array(array, "an array of images")
    if images.dtype != np.uint8:
        raise InvalidRequest(
            f"expected uint8 pixels from 0 to 255, got {str(images.dtype)[:_MAX_SHOWN_CHARACTERS]}"
        )
    return images


def check_bytes(num_bytes: int, image_bytes: int, max_images: int | None) -> None:
    """Check that a number of bytes is that of 1 to max_images images (None for no limit).

    Raises:
        InvalidRequest: it is not; the text has the expected and the received value.
    """
    num_images, rest = divmod(num_bytes, image_bytes)
    if rest:
        raise InvalidRequest(f"expected N x {image_bytes} bytes of images, got {num_bytes}")
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
