"""ModelInfer's messages to a model's inputs, and its outputs back to an answer.

Anything that the model does not take is refused, with the expected and the received value; nothing
is guessed, converted or ignored.
"""

import struct
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from serving.errors import InvalidRequest, TooLarge, Unsupported
from serving.oip import inference_pb
from serving.tensors import DTYPES, Array, Tensor, TensorSignature

MAX_ID_CHARACTERS = 512
"""The longest id: it is part of the answer, whose size is limited."""
MAX_JSON_VALUES = 1 << 18
"""Values of an output that are written as JSON: 0.4 s, in which no other thread runs."""
_MAX_SHOWN_CHARACTERS = 80
"""Texts from callers are cut to this length in errors, which travel as headers."""
_MAX_EMPTY_SIZE = 65_536
"""The most elements that a tensor without any would have if its empty axes had one: such sizes cost
a caller nothing, and may cost a model gigabytes."""
MAX_AXES = 8
"""The most axes of an input that may have any number."""
_UNSUPPORTED = {
    "classification": "classification is not supported: the outputs are sent as the model has them",
    "shared_memory_region": "shared memory is not supported: tensors travel in the messages",
}
"""Tensor parameters that change the meaning of a request, and why they are refused; others are
hints and are not read."""

OWN_PARAMETERS = ("timeout", "priority", "binary_data_output")
"""Parameters of a request that the protocol gives a meaning; a handler does not get them."""

NO_PARAMETERS: Mapping[str, Any] = MappingProxyType({})
_Input = tuple[int, Tensor, list[int]]
"""Its place in the request, the model's description, and its shape."""

CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents", "INT16": "int_contents",
    "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents",
    "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}  # fmt: skip
"""The field of typed contents for each data type; FP16 has none and is always raw."""
_RANGES = {name: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
           for name, dtype in DTYPES.items() if dtype.kind in "iu"} | {"BOOL": (0, 1)}  # fmt: skip

MAX_STRINGS = 65_536
"""The most BYTES elements of a request: each costs Python some 500 ns."""
LENGTH = struct.Struct("<I")
"""Before each element of raw BYTES."""
_NUMBERS = {
    "bool_contents": DTYPES["BOOL"],
    "int_contents": DTYPES["INT32"], "int64_contents": DTYPES["INT64"],
    "uint_contents": DTYPES["UINT32"], "uint64_contents": DTYPES["UINT64"],
    "fp32_contents": DTYPES["FP32"], "fp64_contents": DTYPES["FP64"],
}  # fmt: skip
"""The type of the numbers in each field of typed contents."""
_BOOLEANS = b"\0\1"


class InferRows(NamedTuple):
    """The content of a ModelInferRequest."""

    message: Any  # bytes | tuple[Array, ...]
    """The bytes of N rows where the signature has row_bytes; else an array for each input, in the
    signature's order."""
    num_rows: int
    """N; 1 if the model can't batch."""
    outputs: tuple[int, ...]
    """The outputs that the answer has, as their numbers in the signature."""
    timeout_s: float | None
    """The request's own timeout; None if only the deadline of the call counts."""
    id: str
    """The request's id, which the answer repeats."""
    is_raw: bool
    """Whether tensors are raw bytes in both directions, or typed contents."""
    parameters: Mapping[str, Any] = NO_PARAMETERS
    """The request's parameters, but for the timeout and those of the protocol over HTTP."""


def decode(request: Any, signature: TensorSignature, max_rows: int) -> InferRows:
    """Decode and check a ModelInferRequest.

    Args:
        request: the message.
        signature: the inputs and outputs of its model.
        max_rows: the most rows allowed.

    Raises:
        InvalidRequest: the text has the expected and the received value.
    """
    if len(request.id) > MAX_ID_CHARACTERS:
        raise InvalidRequest(
            f"expected an id of at most {MAX_ID_CHARACTERS} characters, got {len(request.id)}"
        )
    inputs = [
        (at, tensor, _shape(request.inputs[at], tensor))
        for at, tensor in zip(
            _order(request.inputs, signature.inputs), signature.inputs, strict=True
        )
    ]
    num_rows = _num_rows(inputs, max_rows) if signature.is_batchable else 1
    outputs = _outputs(request.outputs, signature.outputs)
    is_raw = len(request.raw_input_contents) > 0 or not inputs
    if is_raw:
        message = _raw(request, inputs, as_rows=signature.row_bytes > 0)
    else:
        message = tuple(
            typed_array(request.inputs[at], tensor, shape) for at, tensor, shape in inputs
        )
        if signature.row_bytes:
            message = message[0].tobytes()
    timeout_s = _timeout_s(request.parameters)
    facts = message, num_rows, outputs, timeout_s, request.id, is_raw
    return InferRows(
        *facts, _parameters(request.parameters) if request.parameters else NO_PARAMETERS
    )


def encode(
    inference: InferRows,
    arrays: Sequence[Array],
    signature: TensorSignature,
    model_name: str,
    version: str,
) -> Any:
    """Build the ModelInferResponse, with tensors in the request's form.

    FP16 has no typed contents: where one is wanted, all tensors are raw.
    """
    response = inference_pb.ModelInferResponse(
        model_name=model_name, model_version=version, id=inference.id
    )
    is_raw = inference.is_raw or any(
        signature.outputs[at].datatype not in CONTENTS for at in inference.outputs
    )
    for at in inference.outputs:
        tensor, array = signature.outputs[at], arrays[at]
        output = response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
        if is_raw:
            response.raw_output_contents.append(to_raw(array))
        else:
            contents = getattr(output.contents, CONTENTS[tensor.datatype])
            contents.extend(to_typed(array))
    return response


def encode_head(
    inference: InferRows,
    arrays: Sequence[Array],
    signature: TensorSignature,
    model_name: str,
    version: str,
) -> bytes:
    """Write the ModelInferResponse of raw outputs up to their contents, its last field."""
    response = inference_pb.ModelInferResponse(
        model_name=model_name, model_version=version, id=inference.id
    )
    for at in inference.outputs:
        tensor = signature.outputs[at]
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=arrays[at].shape)
    data: bytes = response.SerializeToString()
    return data


def quoted(text: str) -> str:
    """Quote a text from a caller for an error, shortened."""
    if len(text) <= _MAX_SHOWN_CHARACTERS:
        return repr(text)
    return f"{text[:_MAX_SHOWN_CHARACTERS]!r}..."


def _order(found: Any, wanted: Sequence[Tensor]) -> Sequence[int]:
    """Return where the model's inputs are among a request's, each of which must be one of them."""
    if len(found) == len(wanted) == 1 and found[0].name == wanted[0].name:
        return (0,)
    names, expected = [tensor.name for tensor in found], [tensor.name for tensor in wanted]
    if len(names) != len(expected) or sorted(names) != sorted(expected):
        raise InvalidRequest(f"expected inputs {_shown(expected)}, got {_shown(names)}")
    places = {name: at for at, name in enumerate(names)}
    return [places[name] for name in expected]


def _outputs(found: Any, wanted: Sequence[Tensor]) -> tuple[int, ...]:
    if not found:
        return tuple(range(len(wanted)))
    places = {tensor.name: at for at, tensor in enumerate(wanted)}
    names = [output.name for output in found]
    if len(places.keys() & names) < len(names):  # one is unknown, or there twice
        raise InvalidRequest(f"expected outputs {_shown(places)}, got {_shown(names)}")
    for output in found:
        _check_parameters(output)
    return tuple(places[name] for name in names)


def _shape(found: Any, wanted: Tensor) -> list[int]:
    shape: list[int] = found.shape[:]
    if wanted.takes_column and len(shape) == 2 and shape[1] == 1:
        shape.pop()
    is_alike = found.datatype == wanted.datatype and _fits(shape, wanted.shape)
    if not is_alike or (0 in shape and prod(size or 1 for size in shape) > _MAX_EMPTY_SIZE):
        sizes = str(shape[:8])[:_MAX_SHOWN_CHARACTERS]
        raise InvalidRequest(f"expected {wanted}, got {quoted(found.datatype)[1:-1]} {sizes}")
    _check_parameters(found)
    return shape


def _fits(shape: list[int], known: tuple[int, ...]) -> bool:
    if not known:  # a scalar, or a tensor of any number of axes
        return len(shape) <= MAX_AXES and min(shape, default=0) >= 0
    if len(shape) != len(known):
        return False
    for size, wanted in zip(shape, known, strict=True):
        if size < 0 or size != wanted >= 0:
            return False
    return True


def _num_rows(inputs: list[_Input], max_rows: int) -> int:
    sizes = [shape[0] for _, _, shape in inputs]
    num_rows = sizes[0]
    if min(sizes) != max(sizes):
        raise InvalidRequest(f"expected as many rows of each input, got {sizes[:8]}")
    if num_rows == 0:
        raise InvalidRequest("expected at least 1 row, got 0")
    if num_rows > max_rows:
        raise TooLarge(f"expected at most {max_rows} rows in a request, got {num_rows}")
    return num_rows


def _check_parameters(tensor: Any) -> None:
    for name, text in _UNSUPPORTED.items():
        if name in tensor.parameters:
            raise Unsupported(text)


def _raw(request: Any, inputs: list[_Input], *, as_rows: bool) -> bytes | tuple[Array, ...]:
    raw = request.raw_input_contents
    if len(raw) != len(inputs):
        raise InvalidRequest(f"expected {len(inputs)} raw_input_contents, got {len(raw)}")
    for tensor in request.inputs:
        if tensor.HasField("contents"):
            raise InvalidRequest("expected contents or raw_input_contents, got both")
    if as_rows:
        return check_raw(raw[0], *inputs[0][1:])
    check_strings(sum(prod(shape) for _, each, shape in inputs if each.datatype == "BYTES"))
    return tuple(from_raw(raw[at], tensor, shape) for at, tensor, shape in inputs)


def typed_array(found: Any, tensor: Tensor, shape: Sequence[int]) -> Array:
    """Decode the typed contents of an input.

    Args:
        found: the input of a request.
        tensor: its name, its datatype and the shape that its model expects.
        shape: the one that it has.

    Raises:
        InvalidRequest: they are of another type, or do not fit the type or the shape.
    """
    field = CONTENTS.get(tensor.datatype)
    if field is None:
        raise InvalidRequest(f"expected raw_input_contents for {tensor.name}: FP16 has no contents")
    fields = {each.name for each, _ in found.contents.ListFields()}
    if fields and fields != {field}:
        names = ", ".join(sorted(fields))
        raise InvalidRequest(f"expected {field} for {tensor.datatype}, got {names}")
    return from_typed(getattr(found.contents, field), tensor, shape)


def _timeout_s(parameters: Any) -> float | None:
    """Return the parameter "timeout" in seconds; None if it is missing or 0."""
    if "timeout" not in parameters:
        return None
    timeout = parameters["timeout"]
    kind = timeout.WhichOneof("parameter_choice")
    if kind not in ("int64_param", "uint64_param"):
        raise InvalidRequest(f"expected timeout as int64_param or uint64_param, got {kind}")
    microseconds: int = getattr(timeout, kind)
    if microseconds < 0:
        raise InvalidRequest(f"expected a timeout of at least 0, got {microseconds}")
    return microseconds / 1e6 or None


def _parameters(parameters: Any) -> dict[str, Any]:
    """Return the parameters for a handler: texts, numbers and booleans by name."""
    found = {}
    for name, each in parameters.items():
        kind = each.WhichOneof("parameter_choice")
        if kind and name not in OWN_PARAMETERS:
            found[name] = getattr(each, kind)
    return found


def set_parameter(parameters: Any, name: str, value: object) -> None:
    """Set a parameter of a message.

    Raises:
        InvalidRequest: it is no text, number or boolean.
    """
    if isinstance(value, bool):
        parameters[name].bool_param = value
    elif isinstance(value, int) and -(2**63) <= value < 2**63:
        parameters[name].int64_param = value
    elif isinstance(value, float):
        parameters[name].double_param = value
    elif isinstance(value, str) and value.isprintable():  # half of a surrogate pair is not
        parameters[name].string_param = value
    else:
        raise InvalidRequest(f"expected the parameter {quoted(name)} as text, number or boolean")


def _shown(names: Iterable[str]) -> str:
    text = ", ".join(map(repr, names)) or "none"
    return text if len(text) <= 200 else f"{text[:200]}..."


def check_raw(data: bytes, tensor: Any, shape: Sequence[int]) -> bytes:
    """Check raw bytes of fixed-size elements, and return them.

    Raises:
        InvalidRequest: not as many as the shape needs, or a BOOL that is neither 0 nor 1.
    """
    _check_count(len(data), prod(shape) * DTYPES[tensor.datatype].itemsize, "bytes", tensor, shape)
    if tensor.datatype == "BOOL" and data.translate(None, _BOOLEANS):
        raise InvalidRequest(f"expected bytes of 0 or 1 for BOOL {tensor.name}, got others")
    return data


def from_raw(data: bytes, tensor: Any, shape: Sequence[int]) -> Array:
    """View raw bytes as an array, or read raw BYTES as an array of texts.

    Raises:
        InvalidRequest: they do not fit the type or the shape.
    """
    if tensor.datatype == "BYTES":
        return _texts(_split(data, prod(shape)), tensor, shape)
    data = check_raw(data, tensor, shape)
    return np.frombuffer(data, DTYPES[tensor.datatype]).reshape(shape)


def to_raw(array: Array) -> bytes:
    """Encode an array as raw bytes; the inverse of `from_raw`."""
    if array.dtype != object:
        return array.tobytes()
    values = map(as_bytes, array.ravel().tolist())
    return b"".join(part for value in values for part in (LENGTH.pack(len(value)), value))


def from_typed(values: Any, tensor: Tensor, shape: Sequence[int]) -> Array:
    """Decode typed contents, as protobuf has read them.

    Args:
        values: texts or numbers.
        tensor: its name and datatype, a key of CONTENTS.
        shape: its shape.

    Raises:
        InvalidRequest: they do not fit the type or the shape.
    """
    field = CONTENTS[tensor.datatype]
    if tensor.datatype == "BYTES":
        return _texts(values, tensor, shape)
    array = _fitting(np.array(values, _NUMBERS[field]), field, tensor)
    _check_count(len(array), prod(shape), field, tensor, shape)
    return array.reshape(shape)


def to_typed(array: Array) -> list[Any]:
    """Return an array's values as typed contents; BYTES as bytes."""
    values: list[Any] = array.ravel().tolist()
    return list(map(as_bytes, values)) if array.dtype == object else values


def as_bytes(value: str | bytes) -> bytes:
    """Encode an element of BYTES."""
    return value.encode() if isinstance(value, str) else value


def _split(data: bytes, expected: int) -> list[bytes]:
    """Divide raw BYTES into their elements, until there is one too many."""
    found: list[bytes] = []
    at, end = 0, len(data)
    while at < end and len(found) <= expected:
        start = at + LENGTH.size
        size = LENGTH.unpack_from(data, at)[0] if start <= end else 0
        at = start + size
        found.append(data[start:at])
    if at > end:
        raise InvalidRequest("expected BYTES behind their lengths of 4 bytes, got a cut off one")
    return found


def check_strings(count: int) -> None:
    """Check the number of BYTES elements of a request.

    Raises:
        InvalidRequest: too many.
    """
    if count > MAX_STRINGS:
        raise InvalidRequest(f"expected at most {MAX_STRINGS} BYTES in a request, got more")


def _texts(values: Sequence[bytes], tensor: Any, shape: Sequence[int]) -> Array:
    """Return an array of texts: ONNX Runtime would take the repr of bytes.

    Those of a handler may be bytes.
    """
    _check_count(len(values), prod(shape), "BYTES", tensor, shape)
    array = np.empty(len(values), object)
    if getattr(tensor, "is_binary", False):  # a message's tensor has no such fact
        array[:] = list(values)
        return array.reshape(shape)
    try:
        array[:] = [value.decode() for value in values]
    except UnicodeDecodeError as err:
        raise InvalidRequest(f"expected BYTES of {tensor.name} as UTF-8: {err.reason}") from err
    return array.reshape(shape)


def _check_count(found: int, expected: int, unit: str, tensor: Any, shape: Sequence[int]) -> None:
    if found != expected:
        sizes = f"{list(shape)!s:.{_MAX_SHOWN_CHARACTERS}}"
        raise InvalidRequest(f"expected {expected} {unit} for {tensor.name} {sizes}, got {found}")


def _fitting(numbers: Array, field: str, tensor: Tensor) -> Array:
    if numbers.dtype == tensor.dtype:
        return numbers
    least, most = _RANGES[tensor.datatype]
    is_signed = numbers.dtype.kind == "i"
    if numbers.max(initial=0) > most or (is_signed and numbers.min(initial=0) < least):
        wrong = numbers[(numbers > most) | (numbers < least)][0]
        raise InvalidRequest(f"expected {field} from {least} to {most}, got {wrong}")
    return numbers.astype(tensor.dtype)
