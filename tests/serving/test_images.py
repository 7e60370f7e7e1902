import numpy as np
import pytest

from serving.errors import InvalidRequest
from serving.predictions import as_images, check_bytes
from serving.tensors import DIGITS, Signature


def test_rows_and_pictures_become_rows():
    rows = np.arange(2 * 784).astype(np.uint8).reshape(2, 784)
    for shape in ((2, 784), (2, 28, 28)):
        images = as_images(rows.reshape(shape), DIGITS)
        np.testing.assert_array_equal(images, rows)
        assert np.shares_memory(images, rows)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((32, 32), "(N, 1024) or (N, 32, 32)"),
        ((8, 8, 3), "(N, 192) or (N, 8, 8, 3)"),
        ((17,), "(N, 17)"),
    ],
)
def test_images_have_the_shape_of_the_model(shape, expected):
    signature = Signature(shape, 5)
    images = np.zeros((3, *shape), np.uint8)
    assert as_images(images, signature).shape == (3, signature.image_bytes)
    for bad in (np.zeros((3, 784), np.uint8), images[0], images[..., :-1]):
        with pytest.raises(InvalidRequest) as caught:
            as_images(bad, signature)
        assert str(caught.value) == f"expected images of shape {expected}, got {bad.shape}"


class Hostile:
    def __array__(self, *_, **__):
        raise KeyError("two\nlines")


RECURSIVE: list[object] = []
RECURSIVE.append(RECURSIVE)


@pytest.mark.parametrize(
    "bad",
    [
        [[0] * 784, [0] * 783],
        [np.zeros(784, np.uint8), np.zeros(5, np.uint8)],
        RECURSIVE,
        Hostile(),
        np.ma.masked_less(np.zeros((1, 784), np.uint8), 1),
        None,
        object(),
        "seven.png",
        b"bytes",
        {"images": 1},
        5,
        2**100,
        [[2**100] * 784],
        [],
        np.zeros((1, 784), ">u2"),
        np.zeros((1, 784), object),
        np.zeros((1, 784), bool),
        np.zeros((1, 784), "datetime64[s]"),
        np.zeros(3, [("a" * 500, "u1")]),
        np.zeros((2**30, 0), np.uint8),
    ],
    ids=lambda bad: type(bad).__name__,
)
def test_what_is_no_array_of_images_is_refused_in_one_line(bad):
    with pytest.raises(InvalidRequest, match="expected") as caught:
        as_images(bad, DIGITS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


BASE = np.arange(3 * 784).astype(np.uint8).reshape(3, 784)


@pytest.mark.parametrize(
    "images",
    [
        BASE[::-1],
        BASE[:, ::-1],
        BASE[:1, ::-1],
        np.asfortranarray(BASE),
        BASE.reshape(3, 28, 28).transpose(0, 2, 1),
        np.broadcast_to(BASE[0], (3, 784)),
        BASE.astype(">u1"),
        np.ma.masked_array(BASE),
        list(BASE),
    ],
)
def test_any_layout_of_pixels_becomes_contiguous_rows(images):
    rows = as_images(images, DIGITS)
    np.testing.assert_array_equal(rows, np.asarray(images).reshape(len(images), 784))
    assert rows.data.cast("B").nbytes == len(images) * 784


@pytest.mark.parametrize(
    ("num_bytes", "message"),
    [(0, "at least 1 image"), (783, "got 783"), (3 * 784, "at most 2 images in a request, got 3")],
)
def test_wrong_number_of_bytes_is_refused(num_bytes, message):
    with pytest.raises(InvalidRequest, match=message):
        check_bytes(num_bytes, 784, max_images=2)


def test_too_many_images_are_refused_with_the_limit():
    with pytest.raises(InvalidRequest, match="at most 2 images in a request, got 3"):
        as_images(np.zeros((3, 784), np.uint8), DIGITS, max_images=2)
