"""Typed contents in every encoding that protobuf allows."""

import pytest
from google.protobuf.message import DecodeError

from serving.errors import InvalidRequest
from serving.protocols import varint
from serving.protocols.oip.inference_pb import ModelInferRequest
from serving.protocols.oip.tensors import TypedContents, from_typed
from serving.tensors import Tensor

NUMBERS = list(range(256)) * 3 + [0, 128, 255, 127]
TENSOR = b"\x0a\x06images\x12\x05UINT8\x18\x01\x18\x84\x06"
"""Name, type, and the shape [1, 772], not packed."""


def field(number, value):
    return varint(number << 3 | 2) + varint(len(value)) + value


def packed(numbers):
    return field(4, b"".join(map(varint, numbers)))


def unpacked(numbers):
    return b"".join(b"\x20" + varint(number) for number in numbers)


def padded(number, size):
    """A varint that is longer than it need be."""
    return bytes([number & 0x7F | 0x80, number >> 7 | 0x80]) + b"\x80" * (size - 3) + b"\x00"


def request(*contents):
    """A ModelInferRequest whose input has `contents`, each in a field of its own."""
    tensor = TENSOR + b"".join(field(5, each) for each in contents)
    return field(1, b"digits") + field(5, tensor) + field(3, b"an id")


IMAGES = Tensor("images", "UINT8", (1, len(NUMBERS)))


def pixels_of(message):
    """The numbers of a message's only input, and the rest of it as protobuf reads it."""
    typed = TypedContents(message)
    rest = ModelInferRequest.FromString(typed.rest)
    parts = typed.inputs[0].get(4, rest.inputs[0].contents.uint_contents)
    size = len(ModelInferRequest.FromString(message).inputs[0].contents.uint_contents)
    return from_typed(parts, IMAGES, (size,)).tolist(), rest


@pytest.mark.parametrize(
    ("message", "is_packed"),
    [
        (request(packed(NUMBERS)), True),
        (request(packed(NUMBERS[:400]) + packed(NUMBERS[400:])), True),
        (request(packed(NUMBERS[:7]), packed(NUMBERS[7:])), True),
        (request(field(4, b"".join(padded(number, 3) for number in NUMBERS))), True),
        (request(field(4, b"".join(padded(number, 10) for number in NUMBERS))), True),
        (request(unpacked(NUMBERS)), False),
        (request(packed(NUMBERS[:300]) + unpacked(NUMBERS[300:])), False),
        (request(packed(NUMBERS) + b"\x78\x01"), False),
        (request(packed(NUMBERS[:7]), unpacked(NUMBERS[7:])), False),
        (request(b"".join(b"\x20" + padded(number, 10) for number in NUMBERS)), False),
    ],
)
def test_numbers_are_those_that_protobuf_reads(message, is_packed):
    (tensor,) = ModelInferRequest.FromString(message).inputs
    found, rest = pixels_of(message)
    assert found == list(tensor.contents.uint_contents) == NUMBERS
    assert bool(rest.inputs[0].contents.uint_contents) is not is_packed
    assert (rest.model_name, rest.id, rest.inputs[0].shape) == ("digits", "an id", tensor.shape)
    assert rest.inputs[0].HasField("contents")


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        (packed([1, 2, 300, 400]), "expected uint_contents from 0 to 255, got 300"),
        (unpacked([7, 256]), "expected uint_contents from 0 to 255, got 256"),
        (field(4, b"\x81\x80\x01"), "expected uint_contents from 0 to 255, got 16385"),
    ],
)
def test_other_numbers_are_refused(contents, text):
    with pytest.raises(InvalidRequest) as refused:
        pixels_of(request(contents))
    assert str(refused.value) == text


@pytest.mark.parametrize("encoded", [b"\x01\x80", b"\x80" * 10 + b"\x00", b"\x80"])
def test_bytes_that_are_no_varints_are_refused(encoded):
    with pytest.raises(InvalidRequest, match="expected uint_contents, got bytes that are no varin"):
        from_typed([encoded], IMAGES, (1,))


@pytest.mark.parametrize(
    "contents",
    [unpacked([1, 2]) + b"\x20", packed([1, 2]) + b"\x20\x80", b"\x42\x02a", b"\x42", b"\x42\xff"],
)
def test_cut_off_field_is_left_to_the_parser(contents):
    with pytest.raises(DecodeError):
        ModelInferRequest.FromString(TypedContents(request(contents)).rest)


@pytest.mark.parametrize(
    "message",
    [
        b"\x0b\x0c" + request(packed(NUMBERS)),
        field(5, TENSOR + field(5, packed([1])) + b"\x33\x34" + field(5, packed(NUMBERS[1:]))),
        request(packed(NUMBERS[:3]) + b"\x43\x44"),
    ],
    ids=["before the inputs", "in an input", "in contents"],
)
def test_group_is_refused_though_protobuf_skips_it(message):
    assert ModelInferRequest.FromString(message).inputs[0].name == "images"
    with pytest.raises(InvalidRequest, match="expected a message without groups"):
        TypedContents(message)


def test_fields_are_counted_in_all_inputs_together():
    tensor = field(5, TENSOR + field(5, packed([1])) * 8)
    with pytest.raises(InvalidRequest, match="expected at most 1024 fields"):
        TypedContents(tensor * 80)


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        (b"\x42\x00" * 65_537, "expected at most 65536 BYTES in a request, got more"),
        (b"\x20\x01" * (1 << 19), "expected packed contents, or at most 1048576 bytes of others"),
    ],
)
def test_contents_that_are_slow_to_read_are_bounded(contents, text):
    TypedContents(request(contents[:1000]))
    with pytest.raises(InvalidRequest) as refused:
        TypedContents(request(contents))
    assert str(refused.value) == text
