"""Our own reading and writing of the messages equals the protobuf library's."""

import numpy as np
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from digit_classifier import wire
from digit_classifier.pb.digits.v1.digits_pb2 import ClassifyRequest, ClassifyResponse
from digit_classifier.predictions import DIGITS
from serving.errors import InvalidRequest


@pytest.mark.parametrize("num_images", [1, 3, 4, 127, 128, 410])  # lengths of one byte to three
def test_usual_response_is_read_without_a_copy(num_images):
    rows = np.zeros((num_images, 10), np.float32)
    data = wire.encode_response(bytes(num_images), rows.tobytes(), "1")
    predictions = wire.decode_response(data, shape=(num_images, 10))
    message = np.frombuffer(data, np.uint8)
    assert np.shares_memory(predictions.digits, message)
    assert np.shares_memory(predictions.probabilities, message)


@given(st.binary(max_size=2000))
def test_arbitrary_bytes_are_an_invalid_request_or_what_protobuf_reads(data):
    try:
        expected = ClassifyRequest.FromString(data).images
    except DecodeError:
        with pytest.raises(InvalidRequest):
            wire.decode_request(data, DIGITS.image_bytes, max_images=10)
        return
    if expected and len(expected) % DIGITS.image_bytes == 0:
        assert wire.decode_request(data, DIGITS.image_bytes, max_images=10) == expected
    else:
        with pytest.raises(InvalidRequest):
            wire.decode_request(data, DIGITS.image_bytes, max_images=10)


@pytest.mark.parametrize(
    ("num_bytes", "message"),
    [
        (0, "at least 1 image, got 0"),
        (785, "N x 784 bytes of images, got 785"),
        (3 * 784, "at most 2 images in a request, got 3"),
    ],
)
def test_wrong_size_names_expected_and_got(num_bytes, message):
    with pytest.raises(InvalidRequest, match=message):
        wire.decode_request(wire.encode_request(bytes(num_bytes)), DIGITS.image_bytes, max_images=2)


@given(num_images=st.integers(1, 300), version=st.integers(1, 10**9))
def test_response_is_written_as_protobuf_writes_it(num_images, version):
    generator = np.random.default_rng(num_images)
    probabilities = generator.random((num_images, 10), np.float32)
    digits = probabilities.argmax(axis=1).astype(np.uint8)
    assert_written_and_read(digits.tobytes(), probabilities, str(version))


@pytest.mark.parametrize("num_classes", [2, 31, 32, 100, 128, 129, 256, 257, 5000])
@pytest.mark.parametrize("digits", [[0], [-1], [0, -1, 1]])  # -1: the last class
def test_response_of_any_number_of_classes(num_classes, digits):
    digits = [digit % num_classes for digit in digits]
    probabilities = np.random.default_rng(7).random((len(digits), num_classes), np.float32)
    assert_written_and_read(digits, probabilities, "1")
    if num_classes <= 256:
        assert_written_and_read(bytes(digits), probabilities, "1")


def assert_written_and_read(digits, probabilities, version):
    """As the protobuf library writes it, and back; also beside a field that nobody knows."""
    data = wire.encode_response(digits, probabilities.tobytes(), version)
    message = ClassifyResponse(
        digits=digits, probabilities=probabilities.ravel().tolist(), model_version=version
    )
    assert data == message.SerializeToString()
    for layout in (data, data + b"\x98\x06\x01"):
        predictions = wire.decode_response(layout)
        assert predictions.digits.tolist() == list(digits)
        np.testing.assert_array_equal(predictions.probabilities, probabilities)
        assert predictions.model_version == version
