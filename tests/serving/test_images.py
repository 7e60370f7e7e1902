import numpy as np
import pytest

from serving.errors import InvalidRequest
from serving.images import as_images, from_bytes


def test_rows_and_pictures_become_rows() -> None:
    rows = np.arange(2 * 784).astype(np.uint8).reshape(2, 784)
    np.testing.assert_array_equal(as_images(rows), rows)
    np.testing.assert_array_equal(as_images(rows.reshape(2, 28, 28)), rows)
    assert np.shares_memory(as_images(rows), rows)


def test_strided_images_become_contiguous() -> None:
    strided = np.arange(4 * 784).astype(np.uint8).reshape(4, 784)[::2]
    images = as_images(strided)
    assert images.flags.c_contiguous
    np.testing.assert_array_equal(images, strided)


def test_bytes_are_viewed_without_a_copy() -> None:
    data = bytes(range(196)) * 8
    images = from_bytes(data)
    assert images.shape == (2, 784)
    assert images.tobytes() == data
    assert not images.flags.writeable


@pytest.mark.parametrize(
    ("num_bytes", "message"),
    [(0, "at least 1 image"), (783, "got 783"), (3 * 784, "at most 2 images in a request, got 3")],
)
def test_wrong_number_of_bytes_is_refused(num_bytes: int, message: str) -> None:
    with pytest.raises(InvalidRequest, match=message):
        from_bytes(bytes(num_bytes), max_images=2)


def test_too_many_images_are_refused_with_the_limit() -> None:
    with pytest.raises(InvalidRequest, match="at most 2 images in a request, got 3"):
        as_images(np.zeros((3, 784), np.uint8), max_images=2)
