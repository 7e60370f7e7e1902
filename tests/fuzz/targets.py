"""The fuzzed functions: each is given bytes and raises only when it has found a bug."""

import io
import math
import random
from collections.abc import Callable

from google.protobuf.message import DecodeError

from digit_classifier import normalizer, wire
from digit_classifier.pb.digits.v1 import digits_pb2
from digit_classifier.predictions import DIGITS
from serving.errors import CorruptModel, InvalidRequest
from serving.http2.client import ClientConnection
from serving.http2.frames import SETTINGS, Http2Error, frame, word
from serving.http2.limits import Limits
from serving.model.manifest_file import parse_manifest
from serving.oip import tensors
from serving.oip.inference_pb import ModelInferRequest
from serving.oip.typed import as_raw
from serving.pictures import decoder
from serving.protocols import parse
from tests.serving.http2.test_recognition import Peer, calls_of, server

MAX_IMAGES = 4


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
        message = parse(ModelInferRequest, raw)
        inference = tensors.decode(message, DIGITS.tensors, MAX_IMAGES)
    except InvalidRequest as err:
        assert str(err).isprintable()
        assert len(str(err)) < 1000
        return
    reference = ModelInferRequest.FromString(data)
    if not is_typed:
        assert inference.message == reference.raw_input_contents[0]
    else:
        assert inference.message == bytes(reference.inputs[0].contents.uint_contents)
    assert len(inference.message) == inference.num_rows * DIGITS.image_bytes
    assert 1 <= inference.num_rows <= MAX_IMAGES
    assert inference.timeout_s is None or 0 < inference.timeout_s < math.inf


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


def http2(data):
    """HTTP/2 as a server: recognised or frame by frame, the same bytes are the same calls."""
    peer = Peer(random.Random(0))
    warm = b"".join(peer.headers() + peer.data(peer.stream) for _ in range(3))
    half = len(data) // 2
    reads = [warm, data[:half], data[half:]]
    one, other = server(varying=None), server()
    by_frames, _, end = calls_of(one, reads)
    recognised, _, same_end = calls_of(other, reads)
    assert end == same_end
    assert end or by_frames == recognised
    for connection in (one, other):
        for stream in list(connection.streams):
            connection.answer([stream], [bytes(50)])
        connection.data_to_send()


def http2_client(data):
    """HTTP/2 as a client: a server may send anything."""
    client = ClientConnection(Limits())
    for number in range(4):
        client.request(((b":method", b"POST"), (b":path", b"/")), bytes(100 * number))
    try:
        client.receive(frame(SETTINGS, 0, bytes(4)) + data, 0.0)
        client.receive(data, 0.0)
    except Http2Error:
        client.request(((b":method", b"POST"),), b"")
    client.cancel(word(3))
    client.data_to_send()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "request": request,
    "infer": infer,
    "manifest": manifest,
    "picture": picture,
    "http2": http2,
    "http2_client": http2_client,
}
