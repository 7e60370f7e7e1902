"""The methods that calls go to: how a request is made of rows, and what an answer says."""

import json
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.calls import GRPC, Headers
from digit_classifier import wire
from serving.oip import inference_pb
from serving.tensors import DTYPES, Array, Feeds

_HEADER_BYTES = 256
"""Length to which the JSON before binary tensors is padded."""
_TOLERANCE = 1e-3
"""The largest difference of a peer's answers: it may run another version of ONNX Runtime, or sum in
another order."""
_INFER = "/v2/models/{}/infer"
_PACKED_INPUT, _PACKED_OUTPUT = b"\x81\xa5input\xc6", b"\x81\xa6output"
PROTOCOLS = ("gRPC", "JSON", "bytes")
"""gRPC with raw tensors; JSON over HTTP; raw tensors over HTTP."""
JSON: Headers = (("content-type", "application/json"),)


@dataclass(frozen=True, slots=True)
class RpcMethod:
    """A method of gRPC, or one of HTTP."""

    path: str
    """/package.Service/Method; for HTTP the path of its URL, with {} for the model."""
    encode: Callable[[str, Feeds], bytes]
    """Makes a request message of a model's name and inputs."""
    decode: Callable[[bytes], list[int]]
    """Reads the digits of an answer message."""
    headers: Headers = GRPC
    is_http: bool = False
    """Whether the path is one of HTTP."""
    outputs: Callable[[bytes], Array] = lambda _: np.empty(0)
    """Reads the numbers of an answer's first output, one after the other."""

    @property
    def protocol(self) -> str:
        """What rows travel in, one of `PROTOCOLS`: only equal ones are compared."""
        if not self.is_http:
            return "gRPC"
        return "JSON" if self.headers == JSON else "bytes"

    def difference(self, answer: bytes, expected: Array) -> str:
        """Say how an answer differs from the first row that ONNX Runtime gives; empty if not."""
        try:
            found = self.outputs(answer)
        except (ValueError, KeyError, TypeError, IndexError) as err:
            return f"its answer can't be read: {err!r}"
        if not found.size:
            return ""
        if found.shape != expected.shape:
            return f"it gives {found.size} numbers, {expected.size} expected"
        if not np.allclose(found, expected, rtol=_TOLERANCE, atol=_TOLERANCE):
            return f"it gives other numbers: they differ by {np.abs(found - expected).max():.3g}"
        return ""


def encode_digits(model: str, feeds: Feeds) -> bytes:
    """Make a ClassifyRequest of (N, 784) uint8."""
    return wire.encode_request(np.ascontiguousarray(feeds["images"]).data.cast("B"))


def encode_infer(model: str, feeds: Feeds) -> bytes:
    """Make a ModelInferRequest, with the protocol's raw bytes."""
    request = inference_pb.ModelInferRequest(model_name=model)
    for name, array in feeds.items():
        request.inputs.add(name=name, datatype=_datatype(array), shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return bytes(request.SerializeToString())


def _datatype(array: Array) -> str:
    return next(name for name, dtype in DTYPES.items() if dtype == array.dtype)


def _decode_digits(answer: bytes) -> list[int]:
    return list(wire.decode_response(answer).digits.tolist())


def _decode_infer(answer: bytes) -> list[int]:
    return _digits(_infer_outputs(answer))


def _encode_json(model: str, feeds: Feeds) -> bytes:
    return json.dumps(
        {
            "inputs": [
                _tensor(name, array) | {"data": array.ravel().tolist()}
                for name, array in feeds.items()
            ]
        }
    ).encode()


def _encode_binary(model: str, feeds: Feeds) -> bytes:
    inputs = [
        _tensor(name, array) | {"parameters": {"binary_data_size": array.nbytes}}
        for name, array in feeds.items()
    ]
    header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    body = b"".join(array.tobytes() for array in feeds.values())
    return header.ljust(_HEADER_BYTES).encode() + body


def _tensor(name: str, array: Array) -> dict[str, object]:
    return {"name": name, "datatype": _datatype(array), "shape": list(array.shape)}


def _decode_json(answer: bytes) -> list[int]:
    return _digits(np.array(json.loads(answer)["outputs"][0]["data"]))


def _decode_binary(answer: bytes) -> list[int]:
    return _digits(_binary_outputs(answer))


def _binary_outputs(answer: bytes) -> Array:
    _, end = json.JSONDecoder().raw_decode(answer.decode("latin-1"))  # the JSON is ASCII
    return np.frombuffer(answer[end:], "<f4").astype(float)


def _infer_outputs(answer: bytes) -> Array:
    raw = inference_pb.ModelInferResponse.FromString(answer).raw_output_contents
    return np.frombuffer(raw[0], "<f4").astype(float) if raw else np.empty(0)


def _oip_outputs(answer: bytes) -> Array:
    return np.asarray(json.loads(answer)["outputs"][0]["data"], float).ravel()


def _plain_outputs(answer: bytes) -> Array:
    found = json.loads(answer)
    return np.asarray(found["output"] if isinstance(found, dict) else found, float).ravel()


def _encode_row(model: str, feeds: Feeds) -> bytes:
    (array,) = feeds.values()
    return json.dumps({"input": array[0].tolist()}).encode()


def _encode_rows(model: str, feeds: Feeds) -> bytes:
    (array,) = feeds.values()
    return json.dumps({"rows": array.tolist()}).encode()


def _pack_row(model: str, feeds: Feeds) -> bytes:
    """Make msgpack's map of "input" to a row's bytes: a bin of 32 bits of length."""
    (array,) = feeds.values()
    row = bytes(array[0].tobytes())
    return _PACKED_INPUT + len(row).to_bytes(4, "big") + row


def _packed_outputs(answer: bytes) -> Array:
    """Read msgpack's map of "output" to bytes: a bin of 8, 16 or 32 bits of length."""
    kind = answer[len(_PACKED_OUTPUT)]
    begin = len(_PACKED_OUTPUT) + 1 + {0xC4: 1, 0xC5: 2, 0xC6: 4}[kind]
    return np.frombuffer(answer[begin:], "<f4").astype(float)


def _digits(probabilities: Array) -> list[int]:
    return list(probabilities.reshape(-1, 10).argmax(1).tolist())


CLASSIFY = RpcMethod("/digits.v1.DigitClassifier/Classify", encode_digits, _decode_digits)
MODEL_INFER = RpcMethod(
    "/inference.GRPCInferenceService/ModelInfer",
    encode_infer,
    _decode_infer,
    outputs=_infer_outputs,
)
INFER_JSON = RpcMethod(_INFER, _encode_json, _decode_json, JSON, is_http=True, outputs=_oip_outputs)


def json_of(path: str, *, has_rows: bool = False) -> RpcMethod:
    """Return the method of a server whose JSON is {"input": a row}, or {"rows": several}."""
    encode = _encode_rows if has_rows else _encode_row
    return RpcMethod(path, encode, _decode_json, JSON, is_http=True, outputs=_plain_outputs)


MSGPACK = RpcMethod(
    "/inference",
    _pack_row,
    lambda answer: _digits(_packed_outputs(answer)),
    (("content-type", "application/msgpack"),),
    is_http=True,
    outputs=_packed_outputs,
)
"""mosec's msgpack of bytes: https://github.com/msgpack/msgpack/blob/master/spec.md"""
INFER_BINARY = RpcMethod(
    _INFER,
    _encode_binary,
    _decode_binary,
    (("inference-header-content-length", str(_HEADER_BYTES)),),
    is_http=True,
    outputs=_binary_outputs,
)
