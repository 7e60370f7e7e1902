"""The Open Inference Protocol over HTTP: JSON, and tensors as bytes behind it.

A request with the header Inference-Header-Content-Length has that many bytes of JSON; the bytes
behind are its binary tensors (the binary tensor data extension, as Triton and KServe have it).
NaN and infinities are NaN, Infinity and -Infinity in both directions, as Triton has them.
"""

import json
import math
import re
from base64 import b64decode, b64encode
from collections.abc import Sequence
from contextlib import suppress
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import orjson

from serving.errors import InvalidRequest
from serving.oip import inference_pb, tensors
from serving.oip.tensors import quoted
from serving.tensors import DTYPES, Array, Tensor, finite

_JSON_TYPES: dict[str, tuple[set[type], str]] = {
    "b": ({bool}, "true or false"),
    "i": ({int}, "integers"),
    "u": ({int}, "integers"),
    "f": ({int, float}, "numbers"),
    "O": ({str, bytes}, "texts"),
}
"""The elements of `data` for each kind of numpy's types, and their name."""
_MAX_SHOWN = 40
"""Bytes of a value that an error shows."""
_MAY_OVERFLOW = re.compile(rb"[eE]\+?\d{3}|(?<!\d)\d{300}")
"""In text with a number that may be larger than any double."""
_FEW_VALUES = 1 << 16
_MAX_AXES = 64
"""The most axes of an array of numpy's; the product of more sizes may be too long to print, or
take seconds."""


NONE = frozenset[str]()


class Form(NamedTuple):
    """The form of an answer: whether tensors follow the JSON as bytes, or are values in it."""

    is_binary: bool
    """That of all outputs that are not named."""
    named: dict[str, bool]
    """That of each output by its name."""
    base64: frozenset[str] = NONE
    """The outputs whose values in JSON are base64, since they are bytes."""

    def wants_bytes(self, output: str) -> bool:
        """Return whether an output follows as bytes."""
        return self.named.get(output, self.is_binary)


def read_infer(
    body: bytes,
    json_bytes: int | None,
    name: str,
    version: str,
    base64: frozenset[str] = NONE,
) -> tuple[Any, Form]:
    """Decode an inference request.

    Args:
        body: the whole body.
        json_bytes: how many of them are JSON; None for all.
        name: the model's name in the path.
        version: the version in the path; "" for the one in service.
        base64: the inputs whose values in JSON are base64, since they are bytes.

    Returns:
        A ModelInferRequest with raw contents, not yet checked against the model, and the form of
        its answer.

    Raises:
        InvalidRequest: the text has the expected and the received value.
    """
    if json_bytes is not None and not 0 <= json_bytes <= len(body):
        raise InvalidRequest(f"expected {json_bytes} bytes of JSON, got a body of {len(body)}")
    head = _object(_json(body if json_bytes is None else body[:json_bytes]), "the body")
    request = inference_pb.ModelInferRequest(model_name=name, model_version=version)
    request.id = _text(head.get("id", ""), "id")
    _set_parameters(request, head)
    rest = memoryview(body)[len(body) if json_bytes is None else json_bytes :]
    return _read_inputs(request, head, rest, base64)


def _read_inputs(
    request: Any, head: dict[str, Any], rest: memoryview, base64: frozenset[str] = NONE
) -> tuple[Any, Form]:
    for item in _objects(head, "inputs"):
        rest = _add_input(request, item, rest, base64)
    if len(rest):
        raise InvalidRequest(f"expected the tensors to end the body, got {len(rest)} bytes more")
    is_binary = _flag(head, "binary_data_output", default=False)
    named = {}
    for item in _objects(head, "outputs"):
        output = request.outputs.add(name=_name(item))
        _set_parameters(output, item)
        named[output.name] = _flag(item, "binary_data", default=is_binary)
    return request, Form(is_binary, named)


def read_values(text: bytes, datatype: str) -> tuple[bytes, list[int]] | None:
    """Decode a list of an input's values.

    Args:
        text: see `Values.parts`.
        datatype: see `Values`.

    Returns:
        Raw contents, and the sizes of the lists in the list; None if there are none, as between
        two commas, or they can't be read so: the whole request will show why.
    """
    try:
        data = orjson.loads(text)
        raw = _packed(_flat(data), datatype, text)
        return (raw, _shape(data)[1:]) if raw else None
    except (ValueError, InvalidRequest):
        return None


def write_infer(response: Any, form: Form) -> tuple[bytes, int | None]:
    """Encode an inference response with raw contents.

    Returns:
        The body, and how many of its bytes are JSON; None for all.

    Raises:
        InvalidRequest: an output is too large for JSON.
    """
    head = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        head["id"] = response.id
    outputs, parts = [], []
    for tensor, contents in zip(response.outputs, response.raw_output_contents, strict=True):
        shape = list(tensor.shape)
        output = {"name": tensor.name, "datatype": tensor.datatype, "shape": shape}
        if form.wants_bytes(tensor.name):
            output["parameters"] = {"binary_data_size": len(contents)}
            parts.append(contents)
        else:
            check_size(tensor.name, shape)
            output["data"] = _values_of(contents, tensor, form.base64, is_flat=True)
        outputs.append(output)
    data = written({**head, "outputs": outputs})
    return b"".join((data, *parts)), len(data) if parts else None


def _values_of(
    contents: bytes, tensor: Any, base64: frozenset[str], *, is_flat: bool = False
) -> Any:
    """Return an output as orjson takes it; bytes as base64."""
    shape = list(tensor.shape)
    if tensor.name not in base64:
        array = tensors.from_raw(contents, tensor, shape)
    else:
        known = Tensor(tensor.name, tensor.datatype, tuple(shape), content="bytes")
        array = tensors.from_raw(contents, known, shape)
        for at, each in enumerate(array.flat):
            array.flat[at] = b64encode(each).decode()
    return plain_values(array.ravel() if is_flat else array)


def plain_values(array: Array) -> Any:
    """Return an output as orjson takes it: an array, but scalars, texts and float16."""
    if not array.ndim or array.dtype.kind == "O":
        return array.tolist()
    return array.astype(np.float32) if array.dtype == np.float16 else array


def written(document: dict[str, Any]) -> bytes:
    """Encode a document, whose arrays are numpy's, with NaN and infinities as Triton has them."""
    data = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    if b"null" in data:  # orjson's NaN and infinities, or part of a name
        data = json.dumps(document, default=lambda each: each.tolist()).encode()
    return data


def read_instances(
    body: bytes, name: str, inputs: Sequence[tuple[str, str]], base64: frozenset[str] = NONE
) -> bytes:
    """Decode a request of KServe's first protocol: `instances`, a row each.

    Args:
        body: JSON.
        name: the model's name.
        inputs: the name and the datatype of each input.
        base64: those whose values are base64, or {"b64": base64}, since they are bytes.

    Returns:
        A ModelInferRequest, serialized.

    Raises:
        InvalidRequest: see `read_infer`.
    """
    rows = _object(_json(body), "the body").get("instances")
    if not isinstance(rows, list) or not rows:
        raise InvalidRequest('expected {"instances": [...]}, a row each')
    if all(isinstance(row, dict) and row.keys() == dict(inputs).keys() for row in rows):
        columns = {each: [row[each] for row in rows] for each, _ in inputs}
    elif len(inputs) == 1 and (not isinstance(rows[0], dict) or base64):
        columns = {inputs[0][0]: rows}
    else:
        names = ", ".join(f'"{each}"' for each, _ in inputs)
        raise InvalidRequest(f"expected each instance as an object with {names or 'nothing'}")
    request, head = inference_pb.ModelInferRequest(model_name=name), {}
    head["inputs"] = [
        {"name": each, "datatype": datatype, "shape": _shape(columns[each]), "data": columns[each]}
        for each, datatype in inputs
    ]
    packed: bytes = _read_inputs(request, head, memoryview(b""), base64)[0].SerializeToString()
    return packed


def _shape(data: Any) -> list[int]:
    shape: list[int] = []
    while isinstance(data, list) and len(shape) <= _MAX_AXES:  # more are refused
        shape.append(len(data))
        data = data[0] if data else None
    return shape


def write_predictions(response: bytes, base64: frozenset[str] = NONE) -> bytes:
    """Encode a ModelInferResponse, serialized, as `predictions` of KServe's first protocol.

    Those of one output are its rows; of several outputs objects, one a row, or one of all outputs
    if these have different numbers of rows.

    Raises:
        InvalidRequest: see `write_infer`.
    """
    message = inference_pb.ModelInferResponse.FromString(response)
    arrays = {}
    for tensor, contents in zip(message.outputs, message.raw_output_contents, strict=True):
        shape = list(tensor.shape)
        check_size(tensor.name, shape)
        arrays[tensor.name] = _values_of(contents, tensor, base64)
    numbers = {tensor.shape[0] if tensor.shape else -1 for tensor in message.outputs}
    predictions: Any = arrays
    if len(arrays) == 1:
        predictions = next(iter(arrays.values()))
    elif len(numbers) == 1 and -1 not in numbers:
        rows = zip(*arrays.values(), strict=True)
        predictions = [dict(zip(arrays, row, strict=True)) for row in rows]
    return written({"predictions": predictions})


def check_size(name: str, shape: list[int]) -> None:
    """Check that an output may be written as JSON; raises InvalidRequest."""
    if (size := math.prod(shape)) > tensors.MAX_JSON_VALUES:
        raise InvalidRequest(
            f"expected an output of at most {tensors.MAX_JSON_VALUES} values as JSON, {name} "
            f"has {size}: ask for it as bytes, by binary_data"
        )


def read_index(body: bytes) -> bool:
    """Decode a request for the repository's index: whether it wants only ready models.

    Raises:
        InvalidRequest: not JSON, or other JSON.
    """
    ready = _object(_json(body), "the body").get("ready", False)
    if not isinstance(ready, bool):
        raise InvalidRequest("expected ready as a boolean")
    return ready


def read_parameters(body: bytes) -> list[str]:
    """Decode a request that loads a model: the names of its parameters.

    Raises:
        InvalidRequest: not JSON, or other JSON.
    """
    names = _parameters(_object(_json(body), "the body")) if body else []
    return [_text(name, "parameters") for name in names]


def as_json(message: Any) -> Any:
    """Convert a message to JSON's types, including zeros, which HTTP clients expect."""
    fields: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            fields[field.name] = {key: as_json(entry) for key, entry in value.items()}
        elif field.is_repeated:
            is_message = field.message_type is not None
            fields[field.name] = [as_json(item) if is_message else item for item in value]
        elif field.message_type is not None:
            if message.HasField(field.name):
                fields[field.name] = as_json(value)
        elif field.enum_type is not None:
            fields[field.name] = field.enum_type.values_by_number[value].name
        elif field.containing_oneof is None or message.HasField(field.name):
            fields[field.name] = value
    return fields


def _add_input(
    request: Any, item: dict[str, Any], rest: memoryview, base64: frozenset[str]
) -> memoryview:
    """Add an input tensor; return the bytes behind its own."""
    shape = item.get("shape")
    if not isinstance(shape, list) or not all(type(size) is int for size in shape):
        raise InvalidRequest("expected shape as a list of integers")
    if len(shape) > _MAX_AXES:
        raise InvalidRequest(f"expected at most {_MAX_AXES} sizes in shape, got {len(shape)}")
    if not all(-(2**63) <= size < 2**63 for size in shape):
        raise InvalidRequest("expected sizes in shape that fit 64 bits")
    name = _name(item)
    datatype = _text(item.get("datatype", ""), "datatype")
    tensor = request.inputs.add(name=name, datatype=datatype, shape=shape)
    parameters = dict(_parameters(item))
    size = parameters.pop("binary_data_size", None)
    _set_parameters(tensor, {"parameters": parameters})
    if size is None:
        if "data" not in item:
            raise InvalidRequest("expected data, or the parameter binary_data_size")
        data = _decoded(item["data"]) if name in base64 else item["data"]
        request.raw_input_contents.append(_raw(data, tensor))
        return rest
    if type(size) is not int or not 0 <= size <= len(rest):
        raise InvalidRequest(
            f"expected binary_data_size from 0 to {len(rest)}, the bytes that are left, "
            f"got {quoted(str(size))}"
        )
    request.raw_input_contents.append(bytes(rest[:size]))
    return rest[size:]


def _decoded(data: Any) -> list[bytes]:
    """Decode base64, of which each text may be in an object, as TensorFlow Serving has it."""
    found = []
    for each in _flat(data):
        text = each["b64"] if isinstance(each, dict) and each.keys() == {"b64"} else each
        try:
            found.append(b64decode(text, validate=True))
        except (ValueError, TypeError) as err:
            raise InvalidRequest("expected data as base64, since the input is bytes") from err
    return found


def _raw(data: Any, tensor: Any) -> bytes:
    """Encode the values of an input, a list or lists of such lists, as raw contents."""
    datatype, shape = tensor.datatype, list(tensor.shape)
    if datatype not in DTYPES:
        raise InvalidRequest(
            f"expected datatype as one of {', '.join(DTYPES)}, got {quoted(datatype)}"
        )
    data = _flat(data)
    if min(shape, default=0) >= 0 and len(data) != math.prod(shape):
        raise InvalidRequest(
            f"expected {math.prod(shape)} values of {quoted(tensor.name)} for the shape {shape}, "
            f"got {len(data)}"
        )
    return _packed(data, datatype)


def _flat(data: Any) -> list[Any]:
    if not isinstance(data, list):
        one = orjson.dumps(data)[:_MAX_SHOWN].decode("utf-8", "ignore")
        raise InvalidRequest(f"expected data as a list, got {one}: a list of 1 item is [{one}]")
    flat: list[Any] = data
    while flat and isinstance(flat[0], list):
        if set(map(type, flat)) != {list} or len(set(map(len, flat))) > 1:
            raise InvalidRequest("expected data as lists of one depth and length")
        flat = list(chain.from_iterable(flat))
    return flat


def _packed(data: list[Any], datatype: str, text: bytes = b"") -> bytes:
    """Encode values as raw contents; `text` is the same as JSON, if it is known."""
    dtype = DTYPES[datatype]
    if datatype == "UINT8":
        # Two thirds faster than the general way: only booleans pass for integers, and one shows by
        # the e of true or false.
        with suppress(TypeError, ValueError):
            raw = bytes(data)
            if not (b"e" in text if text else _has_booleans(data)):
                return raw
    types, words = _JSON_TYPES[dtype.kind]
    if not types.issuperset(map(type, data)):
        raise InvalidRequest(f"expected data as {words} for {datatype}")
    try:
        with np.errstate(over="raise"):
            return tensors.to_raw(np.array(data, dtype))
    except (ValueError, OverflowError, FloatingPointError):
        raise InvalidRequest(f"expected data as {words} that {datatype} can hold") from None


def _has_booleans(data: list[Any]) -> bool:
    """Return whether a list of small integers has booleans among it, by the e of true and false."""
    # In parts: orjson 3.13 takes some 140 bytes for each value before it writes the first, and a
    # process that may not have them ends.
    parts = range(0, len(data), _FEW_VALUES)
    return any(b"e" in orjson.dumps(data[start : start + _FEW_VALUES]) for start in parts)


def _json(data: bytes) -> Any:
    try:
        try:
            return orjson.loads(data)  # a sixth to a seventeenth of the time of json
        except ValueError as err:
            # A process for large bodies may not have orjson's 12 bytes for each; json takes fewer.
            is_short = "Not enough memory" in str(err)
            if not is_short and b"NaN" not in data and b"Infinity" not in data:
                raise
        # It has NaN and infinities; numbers too large for a double are to be neither.
        is_near = _MAY_OVERFLOW.search(data) is not None
        return json.loads(data, parse_float=finite if is_near else None)
    except (ValueError, RecursionError) as err:  # UnicodeDecodeError is a ValueError
        reason = " ".join(str(err).split())[:80]
        raise InvalidRequest(f"expected JSON: {reason}") from err


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidRequest(f"expected {name} as an object")
    return value


def _objects(head: dict[str, Any], name: str) -> list[dict[str, Any]]:
    items = head.get(name, [])
    if not isinstance(items, list):
        raise InvalidRequest(f"expected {name} as a list of objects")
    return [_object(item, f"each of {name}") for item in items]


def _parameters(item: dict[str, Any]) -> dict[str, Any]:
    return _object(item.get("parameters", {}), "parameters")


def _flag(item: dict[str, Any], name: str, *, default: bool) -> bool:
    flag = _parameters(item).get(name, default)
    if not isinstance(flag, bool):
        raise InvalidRequest(f"expected {name} as a boolean")
    return flag


def _set_parameters(message: Any, item: dict[str, Any]) -> None:
    for name, value in _parameters(item).items():
        tensors.set_parameter(message.parameters, _text(name, "parameters"), value)


def _name(item: dict[str, Any]) -> str:
    """Return a tensor's name: any text, since graphs have any, that a message can hold."""
    name = item.get("name", "")
    if not isinstance(name, str):
        raise InvalidRequest("expected name as text")
    try:
        name.encode()
    except UnicodeEncodeError:  # half of a surrogate pair
        raise InvalidRequest("expected name as text that UTF-8 can encode") from None
    return name


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str) or not value.isprintable():  # half of a surrogate pair is not
        raise InvalidRequest(f"expected {name} as printable text")
    return value
