"""ModelInfer's messages to a model's inputs, and its outputs back to an answer.

Anything that the model does not take is refused, with the expected and the received value; nothing
is guessed, converted or ignored.
"""

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

from serving.errors import InvalidRequest
from serving.protocols.oip import inference_pb, values
from serving.protocols.oip.typed import TypedContents
from serving.protocols.oip.values import CONTENTS, FIELDS
from serving.tensors import Array, Tensor, TensorSignature

MAX_ID_CHARACTERS = 512
"""The longest id: it is part of the answer, whose size is limited."""
_MAX_SHOWN_CHARACTERS = 80
"""Texts from callers are cut to this length in errors, which travel as headers."""
_MAX_EMPTY_SIZE = 65_536
"""The most elements that a tensor without any would have if its empty axes had one: such sizes cost
a caller nothing, and may cost a model gigabytes."""
_MAX_AXES = 8
"""Of an input that may have any number."""
_UNSUPPORTED = ("classification", "shared_memory_region")
"""Tensor parameters that change the meaning of a request; others are hints and are not read."""


_Input = tuple[int, Tensor, list[int]]
"""Its place in the request, the model's description, and its shape."""


class Inference(NamedTuple):
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


def decode(
    request: Any, signature: TensorSignature, max_rows: int, typed: TypedContents | None = None
) -> Inference:
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
        message = tuple(_typed(request.inputs[at], typed.inputs[at] if typed else {}, tensor, shape)
                        for at, tensor, shape in inputs)  # fmt: skip
        if signature.row_bytes:
            message = message[0].tobytes()
    timeout_s = _timeout_s(request.parameters)
    return Inference(message, num_rows, outputs, timeout_s, request.id, is_raw)


def encode(
    inference: Inference, arrays: Sequence[Array], signature: TensorSignature, model_name: str,
    version: str,
) -> Any:  # fmt: skip
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
            response.raw_output_contents.append(values.to_raw(array))
        else:
            contents = getattr(output.contents, CONTENTS[tensor.datatype])
            contents.extend(values.to_typed(array))
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
    """Return the numbers of the outputs that a request names, or all."""
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
    """Check an input except its contents; return its shape."""
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
    """Return the number of rows of all inputs."""
    sizes = [shape[0] for _, _, shape in inputs]
    num_rows = sizes[0]
    if min(sizes) != max(sizes):
        raise InvalidRequest(f"expected as many rows of each input, got {sizes[:8]}")
    if num_rows == 0:
        raise InvalidRequest("expected at least 1 row, got 0")
    if num_rows > max_rows:
        raise InvalidRequest(f"expected at most {max_rows} rows in a request, got {num_rows}")
    return num_rows


def _check_parameters(tensor: Any) -> None:
    for name in _UNSUPPORTED:
        if name in tensor.parameters:
            raise InvalidRequest(f"expected tensors in the message, got the parameter {name!r}")


def _raw(request: Any, inputs: list[_Input], *, as_rows: bool) -> bytes | tuple[Array, ...]:
    raw = request.raw_input_contents
    if len(raw) != len(inputs):
        raise InvalidRequest(f"expected {len(inputs)} raw_input_contents, got {len(raw)}")
    for tensor in request.inputs:
        if tensor.HasField("contents"):
            raise InvalidRequest("expected contents or raw_input_contents, got both")
    if as_rows:
        return values.check_raw(raw[0], *inputs[0][1:])
    values.check_strings(sum(prod(shape) for _, each, shape in inputs if each.datatype == "BYTES"))
    return tuple(values.from_raw(raw[at], tensor, shape) for at, tensor, shape in inputs)


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
    return values.from_typed(numbers, tensor, shape)


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


def _shown(names: Iterable[str]) -> str:
    text = ", ".join(map(repr, names)) or "none"
    return text if len(text) <= 200 else f"{text[:200]}..."
