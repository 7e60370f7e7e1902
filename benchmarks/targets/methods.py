"""The methods of gRPC and HTTP: how their requests are written and their answers read."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.load.request import GRPC, Headers
from serving.images import Images
from serving.protocols.digits_v1 import wire
from serving.protocols.oip import inference_pb
from serving.signature import DIGITS

_HEADER_BYTES = 256
"""Length to which the JSON before binary tensors is padded."""


@dataclass(frozen=True, slots=True)
class Method:
    """A method of gRPC, or one of HTTP."""

    path: str
    """/package.Service/Method; for HTTP the path of its URL."""
    encode: Callable[[Images], bytes]
    """Makes a request message of (N, 784) uint8."""
    decode: Callable[[bytes], list[int]]
    """Reads the digits of an answer message."""
    headers: Headers = GRPC
    is_http: bool = False
    """Whether the path is one of HTTP."""


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
    return _argmax(np.frombuffer(raw, "<f4"))


def _encode_json(images: Images) -> bytes:
    return json.dumps({"inputs": [_tensor(images) | {"data": images.ravel().tolist()}]}).encode()


def _encode_binary(images: Images) -> bytes:
    tensor = _tensor(images) | {"parameters": {"binary_data_size": images.nbytes}}
    output = {"name": "probabilities", "parameters": {"binary_data": True}}
    header = json.dumps({"inputs": [tensor], "outputs": [output]})
    return header.ljust(_HEADER_BYTES).encode() + images.tobytes()


def _tensor(images: Images) -> dict[str, object]:
    return {"name": "images", "datatype": "UINT8", "shape": list(images.shape)}


def _decode_json(answer: bytes) -> list[int]:
    return _argmax(np.array(json.loads(answer)["outputs"][0]["data"]))


def _decode_binary(answer: bytes) -> list[int]:
    _, end = json.JSONDecoder().raw_decode(answer.decode("latin-1"))  # the JSON is ASCII
    return _argmax(np.frombuffer(answer[end:], "<f4"))


def _argmax(probabilities: np.typing.NDArray[np.floating]) -> list[int]:
    return list(probabilities.reshape(-1, DIGITS.num_classes).argmax(1).tolist())


CLASSIFY = Method("/digits.v1.DigitClassifier/Classify", encode_digits, _decode_digits)
MODEL_INFER = Method("/inference.GRPCInferenceService/ModelInfer", encode_infer, _decode_infer)
_INFER = "/v2/models/digits/infer"
INFER_JSON = Method(
    _INFER, _encode_json, _decode_json, (("content-type", "application/json"),), is_http=True
)
INFER_BINARY = Method(
    _INFER, _encode_binary, _decode_binary,
    (("inference-header-content-length", str(_HEADER_BYTES)),), is_http=True,
)  # fmt: skip
