"""ModelInfer's messages to a model's inputs, and its outputs back to an answer.

Anything that the model does not take is refused, with the expected and the received value; nothing
is guessed, converted or ignored.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import prod
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from serving.errors import InvalidRequest, TooLarge, Unsupported
from serving.protocols import varint
from serving.protocols.oip import inference_pb
from serving.protocols.oip.inference_pb import InferTensorContents
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
_MAX_AXES = 8
"""Of an input that may have any number."""
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
FIELDS = {field.number: field.name for field in InferTensorContents.DESCRIPTOR.fields}
"""The names of these fields by their numbers."""

_RANGES = {name: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
           for name, dtype in DTYPES.items() if dtype.kind in "iu"} | {"BOOL": (0, 1)}  # fmt: skip

MAX_STRINGS = 65_536
"""The most BYTES elements of a request: each costs Python some 500 ns."""
_LENGTH = struct.Struct("<I")
"""Before each element of raw BYTES."""
_WIDE = {
    "bool_contents": DTYPES["UINT64"],
    "int_contents": DTYPES["INT64"], "int64_contents": DTYPES["INT64"],
    "uint_contents": DTYPES["UINT64"], "uint64_contents": DTYPES["UINT64"],
}  # fmt: skip
"""The fields that are encoded as varints, and their ranges."""
_MAX_VARINT_BYTES = 10
_WINDOW_BYTES = 1 << 18
_SHIFT = np.uint64(7)
_BOOLEANS = b"\0\1"

_MAX_FIELDS = 1024
"""The most fields of a message and its inputs; clients send five for each input."""
_MAX_OTHER_BYTES = 65_536
"""The most bytes besides the tensors: names, shapes, parameters, outputs."""
_MAX_UNPACKED_BYTES = 1 << 20
"""The most bytes of inputs with numbers that are not packed, which are left to protobuf. The
libraries of the protocol's third version pack them."""

_INPUTS, _CONTENTS, _RAW_CONTENTS = 5, 5, 7
"""The fields of the request and of an input."""
_STRINGS = 8
"""The last field of contents, bytes_contents; those before it are numbers."""
_VARINT, _DELIMITED, _MALFORMED = 0, 2, -1
_FIXED_BYTES = {1: 8, 5: 4}
_GROUPS = (3, 4)
"""Where a group begins and ends; the third version has none, but protobuf skips them as unknown."""
_STRING_TAG = _STRINGS << 3 | _DELIMITED
_INPUT_TAG, _NO_CONTENTS = b"\x2a", b"\x2a\0"

_Field = tuple[int, int, int, int, int]
"""Its number and kind; where it begins, where its value does, and where it ends."""


class TypedContents:
    """The typed contents of a ModelInferRequest's inputs, and the rest of it."""

    def __init__(self, message: bytes) -> None:
        """Divide a message; malformed fields are left in the rest, to its parser.

        Raises:
            InvalidRequest: too many fields, strings or unpacked numbers, too many bytes besides the
                tensors, or a group.
        """
        self._message = message
        self._num_fields = self._num_strings = self._num_unpacked_bytes = 0
        self.inputs: list[dict[int, list[bytes]]] = []
        """For each input the parts of each field of its contents: packed numbers, or strings."""
        kept, last, num_raw_bytes = [], 0, 0
        for number, kind, begin, start, at in self._fields(0, len(message)):
            if kind != _DELIMITED:
                continue
            if number == _RAW_CONTENTS:
                num_raw_bytes += at - start
            elif number == _INPUTS and (inner := self._input(start, at)) is not None:
                kept += [message[last:begin], _INPUT_TAG, varint(len(inner)), inner]
                last = at
        kept.append(message[last:])
        self.rest = b"".join(kept)
        """The message without them; `contents` that had some are empty in it."""
        if self._num_unpacked_bytes > _MAX_UNPACKED_BYTES:
            raise InvalidRequest(
                f"expected packed contents, or at most {_MAX_UNPACKED_BYTES} bytes of others"
            )
        if len(self.rest) - num_raw_bytes - self._num_unpacked_bytes > _MAX_OTHER_BYTES:
            raise InvalidRequest(
                f"expected at most {_MAX_OTHER_BYTES} bytes beside the tensors, got more"
            )

    def _input(self, at: int, end: int) -> bytes | None:
        """Return an input without its contents, which are kept apart; None if unchanged."""
        begin, kept, last, parts = at, [], at, dict[int, list[bytes]]()
        self.inputs.append(parts)
        for number, kind, tag, start, at in self._fields(begin, end):
            if (number, kind) != (_CONTENTS, _DELIMITED):
                continue
            if not self._take(start, at, parts):
                parts.clear()
                self._num_unpacked_bytes += end - begin
                return None
            kept += [self._message[last:tag], _NO_CONTENTS]
            last = at
        return b"".join((*kept, self._message[last:end])) if kept else None

    def _take(self, at: int, end: int, parts: dict[int, list[bytes]]) -> bool:
        """Add the fields of contents to `parts`; return whether all are strings or packed."""
        while at < end:
            if self._message[at] == _STRING_TAG and at + 1 < end:
                at = self._take_strings(at, end, parts.setdefault(_STRINGS, []))
                continue
            number, kind, _, start, at = next(self._fields(at, end))
            if kind != _DELIMITED or not 0 < number < _STRINGS:
                return False
            parts.setdefault(number, []).append(self._message[start:at])
        return at == end

    def _take_strings(self, at: int, end: int, strings: list[bytes]) -> int:
        """Add strings that follow one another; return their end, or more if one is malformed."""
        message, room = self._message, MAX_STRINGS - self._num_strings + len(strings)
        while at + 1 < end and message[at] == _STRING_TAG and len(strings) <= room:
            size, start = message[at + 1], at + 2
            if size >= 0x80:
                size, start = _varint(message, at + 1, end)
            at = start + size
            strings.append(message[start:at])
        self._num_strings = MAX_STRINGS - room + len(strings)
        check_strings(self._num_strings)
        return at

    def _fields(self, at: int, end: int) -> Iterator[_Field]:
        """Yield the fields of a message, a malformed one as the last."""
        while at < end:
            self._num_fields += 1
            if self._num_fields > _MAX_FIELDS:
                raise InvalidRequest(
                    f"expected at most {_MAX_FIELDS} fields in a message, got more"
                )
            field = _field_at(self._message, at, end)
            yield field
            at = field[-1]


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


def decode(
    request: Any, signature: TensorSignature, max_rows: int, typed: TypedContents | None = None
) -> InferRows:
    """Decode and check a ModelInferRequest.

    Args:
        request: the message.
        signature: the inputs and outputs of its model.
        max_rows: the most rows allowed.
        typed: the typed contents, cut out of the message; None if it is whole.

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
            _typed(request.inputs[at], typed.inputs[at] if typed else {}, tensor, shape)
            for at, tensor, shape in inputs
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
    if sorted(names) != sorted(expected):
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
    is_alike = found.datatype == wanted.datatype and _fits(shape, wanted.shape)
    if not is_alike or (0 in shape and prod(size or 1 for size in shape) > _MAX_EMPTY_SIZE):
        sizes = str(shape[:8])[:_MAX_SHOWN_CHARACTERS]
        raise InvalidRequest(f"expected {wanted}, got {quoted(found.datatype)[1:-1]} {sizes}")
    _check_parameters(found)
    return shape


def _fits(shape: list[int], known: tuple[int, ...]) -> bool:
    if not known:  # a scalar, or a tensor of any number of axes
        return len(shape) <= _MAX_AXES and min(shape, default=0) >= 0
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


def _typed(found: Any, parts: dict[int, list[bytes]], tensor: Tensor, shape: list[int]) -> Array:
    field = CONTENTS.get(tensor.datatype)
    if field is None:
        raise InvalidRequest(f"expected raw_input_contents for {tensor.name}: FP16 has no contents")
    fields = {each.name for each, _ in found.contents.ListFields()}
    fields.update(FIELDS[number] for number in parts)
    if fields and fields != {field}:
        names = ", ".join(sorted(fields))
        raise InvalidRequest(f"expected {field} for {tensor.datatype}, got {names}")
    numbers = next(iter(parts.values())) if parts else getattr(found.contents, field)
    return from_typed(numbers, tensor, shape)


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
    return {
        name: getattr(each, kind)
        for name, each in parameters.items()
        if name not in OWN_PARAMETERS and (kind := each.WhichOneof("parameter_choice"))
    }


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
    return b"".join(part for value in values for part in (_LENGTH.pack(len(value)), value))


def from_typed(values: Any, tensor: Tensor, shape: Sequence[int]) -> Array:
    """Decode typed contents.

    Args:
        values: strings; or numbers, as a list of packed fields or as protobuf has read them.
        tensor: its name and datatype, a key of CONTENTS.
        shape: its shape.

    Raises:
        InvalidRequest: they do not fit the type or the shape.
    """
    field, dtype = CONTENTS[tensor.datatype], tensor.dtype
    if tensor.datatype == "BYTES":
        return _texts(values, tensor, shape)
    if not isinstance(values, list):
        arrays = [_fitting(np.array(values, _WIDE.get(field, dtype)), field, tensor)]
    elif field in _WIDE:
        windows = (window for part in values for window in _windows(part))
        arrays = [_fitting(_varints(window, field), field, tensor) for window in windows]
    else:
        arrays = [_floats(part, field, dtype) for part in values]
    array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
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
        start = at + _LENGTH.size
        size = _LENGTH.unpack_from(data, at)[0] if start <= end else 0
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
        sizes = list(shape)
        raise InvalidRequest(f"expected {expected} {unit} for {tensor.name} {sizes}, got {found}")


def _fitting(numbers: Array, field: str, tensor: Tensor) -> Array:
    if field not in _WIDE or numbers.dtype == tensor.dtype:
        return numbers
    if numbers.dtype == np.uint64:
        numbers = numbers.view(_WIDE[field])
    least, most = _RANGES[tensor.datatype]
    is_signed = numbers.dtype.kind == "i"
    if numbers.max(initial=0) > most or (is_signed and numbers.min(initial=0) < least):
        wrong = numbers[(numbers > most) | (numbers < least)][0]
        raise InvalidRequest(f"expected {field} from {least} to {most}, got {wrong}")
    return numbers.astype(tensor.dtype)


def _floats(encoded: bytes, field: str, dtype: np.dtype[Any]) -> Array:
    if len(encoded) % dtype.itemsize:
        raise InvalidRequest(
            f"expected {field} of {dtype.itemsize} bytes each, got {len(encoded)} bytes"
        )
    return np.frombuffer(encoded, dtype)


def _windows(encoded: bytes) -> Iterator[bytes]:
    """Divide varints into parts that fit a core's cache."""
    at = 0
    while at < len(encoded) or not at:
        end = at + _WINDOW_BYTES
        last = min(end + _MAX_VARINT_BYTES, len(encoded))
        while end < last and encoded[end - 1] >= 0x80:
            end += 1
        yield encoded[at:end]
        at = end


def _varints(encoded: bytes, field: str) -> Array:
    """Decode varints of any length as unsigned numbers."""
    data = np.frombuffer(encoded, np.uint8)
    ends = (data < 0x80).nonzero()[0]
    if len(ends) == len(data):
        return data
    if not len(ends) or ends[-1] != len(data) - 1:
        raise InvalidRequest(f"expected {field}, got bytes that are no varints")
    numbers = data[ends].astype(np.uint64)
    places: Any = slice(None)
    left = len(data) - len(ends)
    for _ in range(_MAX_VARINT_BYTES - 1):  # from the last byte of each to its first
        ends = ends - 1  # -1 is the last byte of all, which ends a number
        before = data[ends]
        longer = (before >= 0x80).nonzero()[0]
        places = places[longer] if isinstance(places, np.ndarray) else longer
        numbers[places] = numbers[places] << _SHIFT | before[longer] & 0x7F
        ends = ends[longer]
        left -= len(longer)
        if not left:
            return numbers
    raise InvalidRequest(f"expected {field}, got bytes that are no varints")


def _field_at(message: bytes, begin: int, end: int) -> _Field:
    tag, at = _varint(message, begin, end)
    number, kind = tag >> 3, tag & 7
    start = at
    if kind == _VARINT:
        _, at = _varint(message, at, end)
    elif kind == _DELIMITED:
        size, start = _varint(message, at, end)
        at = start + size
    elif kind in _GROUPS:  # what follows must not be left to protobuf, which would read it
        raise InvalidRequest("expected a message without groups, got one")
    else:
        at += _FIXED_BYTES.get(kind, end)
    if at > end:
        return 0, _MALFORMED, begin, begin, end
    return number, kind, begin, start, at


def _varint(message: bytes, at: int, end: int) -> tuple[int, int]:
    """Return a number and where it ends; far past the end if it is malformed."""
    if at < end and message[at] < 0x80:  # most are
        return message[at], at + 1
    value = 0
    for shift in range(0, 7 * _MAX_VARINT_BYTES, 7):
        if at >= end:
            break
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at += 1
        if byte < 0x80:
            return value, at
    return 0, 2 * end + 1
