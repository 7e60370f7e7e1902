"""The methods that servers are called by: how their messages are written and read."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.load.network import Encode
from serving.images import Images
from serving.protocols.digits_v1 import wire
from serving.protocols.oip import inference_pb
from serving.signature import DIGITS


@dataclass(frozen=True, slots=True)
class Method:
    """A method of gRPC, or one of HTTP."""

    path: str
    """/package.Service/Method; for HTTP the path of its URL."""
    encode: Encode
    """Makes a request message of (N, 784) uint8; for HTTP the whole request, with its head."""
    decode: Callable[[bytes], list[int]]
    """Reads the digits of an answer message."""
    is_http: bool = False
    """Whether it is called over HTTP."""
    right_share: float = 0.95
    """Share of the digits that must be the fp32 model's; int8 may well differ in one."""


def encode_digits(images: Images) -> bytes:
    """Make a ClassifyRequest of (N, 784) uint8."""
    return wire.encode_request(images.data.cast("B"))


def encode_infer(images: Images) -> bytes:
    """Make a ModelInferRequest of (N, 784) uint8, as the protocol's raw bytes."""
    request = inference_pb.ModelInferRequest(model_name="digits")
    request.inputs.add(name="images", datatype="UINT8", shape=[len(images), DIGITS.image_bytes])
    request.raw_input_contents.append(images.tobytes())
    return bytes(request.SerializeToString())


def _decode_digits(answer: bytes) -> list[int]:
    return list(wire.decode_response(answer).digits.tolist())


def _decode_infer(answer: bytes) -> list[int]:
    (raw,) = inference_pb.ModelInferResponse.FromString(answer).raw_output_contents
    return list(np.frombuffer(raw, "<f4").reshape(-1, DIGITS.num_classes).argmax(1).tolist())


def _decode_stream_infer(answer: bytes) -> list[int]:
    response = inference_pb.ModelStreamInferResponse.FromString(answer)
    return _decode_infer(response.infer_response.SerializeToString())


_DIGITS, _OIP = "/digits.v1.DigitClassifier/", "/inference.GRPCInferenceService/"
CLASSIFY = Method(f"{_DIGITS}Classify", encode_digits, _decode_digits)
CLASSIFY_STREAM = Method(f"{_DIGITS}ClassifyStream", encode_digits, _decode_digits)
MODEL_INFER = Method(f"{_OIP}ModelInfer", encode_infer, _decode_infer)
MODEL_STREAM_INFER = Method(f"{_OIP}ModelStreamInfer", encode_infer, _decode_stream_infer)
