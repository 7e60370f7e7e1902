"""The digits.v1 messages as bytes, without a message object for usual answers.

A field of bytes or of packed numbers is a tag, a length and the raw data, little-endian, so it is a
slice (https://protobuf.dev/programming-guides/encoding). Other layouts go through the protobuf
library.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from digit_classifier.pb.digits.v1 import digits_pb2
from digit_classifier.predictions import DIGITS, Digits, Predictions, check_bytes, digit_type
from serving.protocols import parse, varint
from serving.tensors import Signature

_FIELD_1, _FIELD_2, _FIELD_3 = b"\x0a", b"\x12", b"\x1a"  # wire type 2: length-delimited


def encode_request(pixels: bytes | memoryview) -> bytes:
    """Encode the bytes of N images as a ClassifyRequest."""
    return b"".join((_FIELD_1, varint(len(pixels)), pixels))


def decode_request(data: bytes, image_bytes: int, max_images: int) -> bytes:
    """Decode a ClassifyRequest and check how many images it holds.

    Returns:
        N x image_bytes bytes.

    Raises:
        InvalidRequest: malformed, not a multiple of image_bytes, empty, or too many.
    """
    pixels: bytes = parse(digits_pb2.ClassifyRequest, data).images
    check_bytes(len(pixels), image_bytes, max_images)
    return pixels


def encode_response(digits: Sequence[int], probabilities: bytes | bytearray, version: str) -> bytes:
    """Encode a ClassifyResponse.

    Args:
        digits: N class numbers, as bytes if they fit.
        probabilities: N rows of little-endian float32, one for each class.
        version: the model's version.
    """
    packed = _packed(digits)
    return b"".join(
        (
            _FIELD_1,
            varint(len(packed)),
            packed,
            _FIELD_2,
            varint(len(probabilities)),
            probabilities,
            _text(version),
        )
    )


def _packed(numbers: Sequence[int]) -> bytes | bytearray:
    """Encode numbers as a packed field; bytes below 128 are encoded already."""
    if isinstance(numbers, bytes | bytearray) and numbers.isascii():
        return numbers
    return b"".join(map(varint, numbers))


@lru_cache(maxsize=8)
def _text(version: str) -> bytes:
    return b"".join((_FIELD_3, varint(len(version.encode())), version.encode()))


def decode_response(
    data: bytes, class_labels: tuple[str, ...] = (), shape: tuple[int, int] = (1, 10)
) -> Predictions:
    """Decode a ClassifyResponse.

    Args:
        data: the message.
        class_labels: see `Predictions`; they are not in the message.
        shape: the shape of the probabilities that is looked for first, which takes a third of the
            time.

    Raises:
        DecodeError: malformed.
        ValueError: there are no digits, or the number of probabilities does not fit.
    """
    first, second = _layout(*shape)
    begin = len(first) + shape[0]
    packed, at = data[len(first) : begin], begin + len(second)
    end = at + 4 * shape[0] * shape[1]
    if (
        data.startswith(first)
        and packed.isascii()  # one byte a digit
        and data.startswith(second, begin)
        and data[end : end + 1] == _FIELD_3
        and data[end + 1 : end + 2] == bytes((len(data) - end - 2 & 0x7F,))
    ):
        numbers: Digits = np.frombuffer(data, np.uint8, shape[0], len(first))
        largest = max(packed)  # of one digit in a tenth of the time that numpy takes
        text = str(data[end + 2 :], "utf-8")
        rows = np.frombuffer(data, "<f4", shape[0] * shape[1], at).reshape(shape)
    else:
        response = digits_pb2.ClassifyResponse.FromString(data)
        numbers, text = np.array(response.digits, np.uint32), response.model_version
        largest = max(response.digits)
        rows = np.array(response.probabilities, np.float32).reshape(len(numbers), -1)
    if largest >= rows.shape[1]:
        raise ValueError(f"the digit {largest}")
    numbers = numbers.astype(digit_type(rows.shape[1]), copy=False)
    return Predictions(numbers, rows, text, class_labels)


@lru_cache(maxsize=256)
def _layout(num_images: int, num_classes: int) -> tuple[bytes, bytes]:
    """Return the bytes before the digits and before the probabilities of a response."""
    return _FIELD_1 + varint(num_images), _FIELD_2 + varint(4 * num_images * num_classes)


def signature_of(response: digits_pb2.GetModelResponse) -> Signature:
    """Return the signature in a GetModelResponse; servers without one serve digits.

    Raises:
        ValueError: it is not a signature.
    """
    if not response.HasField("signature"):
        return DIGITS
    sent = response.signature
    names = ("input_shape", "dtype", "classes", "labels")
    return Signature.of({name: getattr(sent, name) for name in names})
