"""What is asked of a target: the rows of calls, and the messages that carry them."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.load.trace import GRPC, Headers
from serving.digits import wire
from serving.model import repository
from serving.protocols.oip import inference_pb
from serving.tensors import Array, Feeds, TensorSignature

LARGEST_BATCH = 4096
_MAX_BYTES = 256 << 20
"""Of drawn rows."""
_OPEN_AXIS = 16
"""The size of drawn axes that the model leaves open, but for the rows'."""
_HEADER_BYTES = 256
"""Length to which the JSON before binary tensors is padded."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Workload:
    """A model, and rows to ask it about."""

    model: str
    """Its name."""
    rows: Mapping[str, Array]
    """By input: as many rows as a call may have."""
    fixed: Mapping[str, Array] = field(default_factory=dict)
    """By input: arrays that are no rows, the same in each call."""
    answers: list[int] | None = None
    """The digits that the model sees in the first rows; None if it reads none."""

    def feeds(self, batch: int) -> Feeds:
        """Return the inputs of a call.

        Raises:
            OSError: a call can't have that number of rows.
        """
        if any(len(array) < batch for array in self.rows.values()):
            raise OSError(f"{batch} rows of {self.model} are too many here")
        return {**self.fixed, **{name: array[:batch] for name, array in self.rows.items()}}


def golden(models: Path) -> Workload:
    """Take the model's own golden samples, which are real digits: zeros may cost less.

    Raises:
        DigitsError: there is no model in this repository.
    """
    newest = repository.versions(models / "digits")[0]
    manifest = repository.load_manifest(models / "digits" / newest)
    images = manifest.golden_images
    answers = manifest.golden_probabilities["fp32"].argmax(axis=1).tolist()
    rows = {"images": np.resize(images, (LARGEST_BATCH, images.shape[1]))}
    return Workload(model="digits", rows=rows, answers=answers)


def drawn(file: Path) -> Workload:
    """Draw inputs for any model: numbers from 0 to 1, bytes of all values, whole numbers 0 and 1.

    Raises:
        OSError: an input is of texts.
        DigitsError: the model can't be used.
    """
    from serving import Model

    with Model.load(file, device="cpu") as model:
        signature: TensorSignature = model.served.tensors
    generator, rows, fixed = np.random.default_rng(0), dict[str, Array](), dict[str, Array]()
    most = _MAX_BYTES // max(1, sum(each.row_bytes or 1 << 16 for each in signature.inputs))
    for each in signature.inputs:
        if each.dtype.kind == "O":
            raise OSError(f"{each}: texts are not drawn")
        is_rows = each.shape[:1] == (-1,)
        shape = [_OPEN_AXIS if size < 0 else size for size in each.shape]
        if is_rows:
            shape[0] = max(1, min(LARGEST_BATCH, most))
        highest = 256 if each.dtype == np.uint8 else 2
        array = generator.random(shape) if each.dtype.kind == "f" else \
            generator.integers(0, highest, shape)  # fmt: skip
        (rows if is_rows else fixed)[each.name] = np.asarray(array, each.dtype)
    return Workload(model=file.stem, rows=rows, fixed=fixed)


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
    kinds = {"f": "FP", "i": "INT", "u": "UINT"}
    kind = array.dtype.kind
    return "BOOL" if kind == "b" else f"{kinds[kind]}{8 * array.dtype.itemsize}"


def _decode_digits(answer: bytes) -> list[int]:
    return list(wire.decode_response(answer).digits.tolist())


def _decode_infer(answer: bytes) -> list[int]:
    raw = inference_pb.ModelInferResponse.FromString(answer).raw_output_contents[0]
    return _digits(np.frombuffer(raw, "<f4"))


def _encode_json(model: str, feeds: Feeds) -> bytes:
    return json.dumps({"inputs": [
        _tensor(name, array) | {"data": array.ravel().tolist()} for name, array in feeds.items()
    ]}).encode()  # fmt: skip


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
    _, end = json.JSONDecoder().raw_decode(answer.decode("latin-1"))  # the JSON is ASCII
    return _digits(np.frombuffer(answer[end:], "<f4"))


def _digits(probabilities: Array) -> list[int]:
    return list(probabilities.reshape(-1, 10).argmax(1).tolist())


CLASSIFY = RpcMethod("/digits.v1.DigitClassifier/Classify", encode_digits, _decode_digits)
MODEL_INFER = RpcMethod("/inference.GRPCInferenceService/ModelInfer", encode_infer, _decode_infer)
_INFER = "/v2/models/{}/infer"
INFER_JSON = RpcMethod(
    _INFER, _encode_json, _decode_json, (("content-type", "application/json"),), is_http=True
)
INFER_BINARY = RpcMethod(
    _INFER, _encode_binary, _decode_binary,
    (("inference-header-content-length", str(_HEADER_BYTES)),), is_http=True,
)  # fmt: skip
