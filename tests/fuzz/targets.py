"""The fuzzed functions: each is given bytes and raises only when it has found a bug."""

import io
import math
from collections.abc import Callable
from pathlib import Path

from google.protobuf.message import DecodeError

from digit_classifier import normalizer, wire
from digit_classifier.pb.digits.v1 import digits_pb2
from digit_classifier.predictions import DIGITS
from serving.errors import CorruptModel, InvalidRequest
from serving.model.manifest_file import parse_manifest
from serving.oip import protobuf
from serving.oip.inference_pb import ModelInferRequest
from serving.oip.large_messages import as_raw
from serving.oip.request import understand
from serving.pictures import decoder
from tests.http2.fuzz_targets import http2, http2_client

MAX_IMAGES = 4
TESTS = Path(__file__).parents[1]
CORPORA = TESTS / "fuzz" / "corpus", TESTS / "http2" / "corpus"
"""Folders with a folder of inputs for each target; those of a library lie with its tests."""


def request(data):
    """The request parser, with its short cuts, against protobuf's own."""
    try:
        reference = digits_pb2.ClassifyRequest.FromString(data).images
    except DecodeError:
        reference = b""  # refused, like no images
    num_images, rest = divmod(len(reference), DIGITS.image_bytes)
    is_good = 1 <= num_images <= MAX_IMAGES and not rest
    try:
        pixels = wire.decode_request(data, DIGITS.image_bytes, MAX_IMAGES)
    except InvalidRequest as err:
        assert not is_good, err
        assert str(err).isprintable()
        return
    assert bytes(pixels) == reference
    assert is_good


def infer(data):
    """ModelInfer's parser and checks, against protobuf's own."""
    try:
        raw, is_typed = as_raw(data)
        sent = protobuf.read(raw)[1]
        request, rows = understand(sent, "digits", DIGITS.tensors, MAX_IMAGES)
    except InvalidRequest as err:
        assert str(err).isprintable()
        assert len(str(err)) < 1000
        return
    reference = ModelInferRequest.FromString(data)
    if not is_typed:
        assert rows == reference.raw_input_contents[0]
    else:
        assert rows == bytes(reference.inputs[0].contents.uint_contents)
    assert len(rows) == request.num_rows * DIGITS.image_bytes
    assert 1 <= request.num_rows <= MAX_IMAGES
    assert request.timeout_s is None or 0 < request.timeout_s < math.inf


def manifest(data):
    """The manifest parser: an accepted manifest can be sent to clients and computed with."""
    try:
        found = parse_manifest(data)
    except CorruptModel as err:
        assert str(err).isprintable()
        return
    digits_pb2.GetModelResponse(
        name=found.name, version=found.version, test_accuracy=found.test_accuracy,
        signature=found.signature.document(),
    )  # fmt: skip
    for probabilities in found.golden_probabilities.values():
        assert probabilities.shape == (len(found.golden_images), found.signature.num_classes)


def picture(data):
    """The reader of picture files, Pillow's decoders included, and the search for the digit."""
    try:
        images = normalizer.to_images(decoder.read_page(io.BytesIO(data), decoder.MAX_SIDE).grey)
    except InvalidRequest as err:
        assert str(err).isprintable()
        assert len(str(err)) < 1000
        return
    assert images.shape[1:] == (28, 28)
    assert images.any((1, 2)).all()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "request": request,
    "infer": infer,
    "manifest": manifest,
    "picture": picture,
    "http2": http2,
    "http2_client": http2_client,
}


def inputs():
    """Return the files of all corpora; each lies in a folder that has its target's name."""
    return sorted(path for corpus in CORPORA for path in corpus.glob("*/*"))
