"""What a caller asks of a model and what it answers, as values: the same for every form.

    bytes ──▶ a codec's `read` ──▶ `Sent` ──▶ `understand` ──▶ `InferRequest`, and the call's rows
    bytes ◀── a codec's `write` ◀── `InferAnswer` ◀── `InferEncoder` ◀── a run's `Result`

The codecs are `protobuf`, `rest` (JSON, and bytes behind it) and `predict`. `understand` compares
what was sent with the model's inputs and outputs. Anything that the model does not take is refused,
with the expected and the received value; nothing is guessed, converted or ignored.
"""

from collections.abc import Container, Iterable, Mapping, Sequence
from math import prod
from typing import Any, NamedTuple, Protocol

import numpy as np

from serving.errors import InvalidRequest, TooLarge, Unsupported
from serving.oip.parameters import ASKS_FOR_END, NO_PARAMETERS, of_handler, timeout_s_of
from serving.oip.values import MAX_SHOWN_CHARACTERS, array_of, bytes_of, check_strings, quoted
from serving.tensors import Array, Tensor, TensorSignature

MAX_ID_CHARACTERS = 512
"""The longest id: it is part of the answer, whose size is limited."""
MAX_JSON_VALUES = 1 << 18
"""Values of an output that are written as JSON: 0.4 s, in which no other thread runs."""
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
_MAX_OTHER_BYTES = 65_536
"""The most bytes besides the tensors: names, shapes, parameters, outputs."""


class SentTensor(Protocol):
    """An input as its caller describes it; a message's has these fields, too."""

    @property
    def name(self) -> str:
        """Its name."""

    @property
    def datatype(self) -> str:
        """The protocol's name of its type."""

    @property
    def shape(self) -> Sequence[int]:
        """All its axes."""

    @property
    def parameters(self) -> Container[str]:
        """The names of its parameters, at least."""


class SentInput(NamedTuple):
    """A `SentTensor`."""

    name: str
    datatype: str
    shape: list[int]
    parameters: Container[str] = ()


class SentOutput(NamedTuple):
    """An output that a caller asks for."""

    name: str
    parameters: Container[str] = ()


class Sent(NamedTuple):
    """What a request says, before it is compared with the model."""

    inputs: Sequence[SentTensor]
    values: Sequence[Any]
    """Of each input: see `array_of`."""
    outputs: Sequence[Any] = ()
    """Each a `SentOutput`; none of them for all that the model has."""
    id: str = ""
    """Its caller's name for it, which the answer repeats."""
    parameters: Mapping[str, Any] = NO_PARAMETERS
    """Texts, numbers and booleans."""
    as_bytes: bool = False
    """Whether outputs are wanted as bytes, not as values in a text or a list."""
    named: Mapping[str, bool] = NO_PARAMETERS
    """The same of single outputs, by their names."""
    fault: str = ""
    """Why there are no values; a refusal that names it comes after those of names and shapes."""


class InferRequest(NamedTuple):
    """What stays the same from call to call of one kind; their rows and ids are their own."""

    name: str
    """The model's, which the answer has."""
    num_rows: int
    """The rows of a call; 1 if the model can't batch."""
    outputs: tuple[int, ...]
    """The outputs that the answer has, as their numbers in the signature."""
    tensors: tuple[Tensor, ...]
    """These outputs."""
    as_bytes: tuple[bool, ...]
    """Whether each of them is wanted as bytes."""
    timeout_s: float | None = None
    """The request's own timeout; None if only the deadline of the call counts."""
    parameters: Mapping[str, Any] = NO_PARAMETERS
    """For a handler: the request's parameters, but for those that the protocol gives a meaning."""
    is_end_wanted: bool = False
    """Whether the last one of its answers on a stream is marked, if need be by one more."""


class InferAnswer(NamedTuple):
    """What a model answers to a call."""

    request: InferRequest
    arrays: Sequence[Array]
    """The outputs that were asked for."""
    version: str
    """The version that answered."""
    id: str
    """The call's; empty for none."""
    is_end: bool | None = None
    """Whether it is the last one of a request's on a stream; None to leave that out."""


def understand(
    sent: Sent, name: str, signature: TensorSignature, max_rows: int
) -> tuple[InferRequest, bytes | tuple[Array, ...]]:
    """Compare what was sent with a model's inputs and outputs.

    Args:
        sent: what the request says.
        name: the model's, as the caller has it.
        signature: the inputs and outputs of its model.
        max_rows: the most rows allowed.

    Returns:
        The request, and the call's rows: bytes of N rows where the signature has row_bytes, else an
        array for each input, in the signature's order.

    Raises:
        InvalidRequest: the text has the expected and the received value.
    """
    if len(sent.id) > MAX_ID_CHARACTERS:
        raise InvalidRequest(
            f"expected an id of at most {MAX_ID_CHARACTERS} characters, got {len(sent.id)}"
        )
    order = _order(sent.inputs, signature.inputs)
    shapes = [
        _shape(sent.inputs[at], wanted) for at, wanted in zip(order, signature.inputs, strict=True)
    ]
    num_rows = _num_rows(shapes, max_rows) if signature.is_batchable else 1
    outputs = _outputs(sent.outputs, signature.outputs)
    if sent.fault:
        raise InvalidRequest(sent.fault)
    values = [sent.values[at] for at in order]
    rows: bytes | tuple[Array, ...]
    if signature.row_bytes:
        rows = bytes_of(values[0], signature.inputs[0], shapes[0])
    else:
        all_three = [*zip(values, signature.inputs, shapes, strict=True)]
        check_strings(sum(_num_strings(*each) for each in all_three))
        rows = tuple(array_of(*each) for each in all_three)
    tensors = tuple([signature.outputs[at] for at in outputs])
    forms = tuple([sent.named.get(each.name, sent.as_bytes) for each in tensors])
    facts = name, num_rows, outputs, tensors, forms
    if not sent.parameters:
        return InferRequest(*facts), rows
    parameters = of_handler(sent.parameters)
    is_end_wanted = sent.parameters.get(ASKS_FOR_END) is True
    return InferRequest(*facts, timeout_s_of(sent.parameters), parameters, is_end_wanted), rows


def _order(found: Sequence[SentTensor], wanted: Sequence[Tensor]) -> Sequence[int]:
    """Return where the model's inputs are among a request's, each of which must be one of them."""
    if len(found) == len(wanted) == 1 and found[0].name == wanted[0].name:
        return (0,)
    names, expected = [tensor.name for tensor in found], [tensor.name for tensor in wanted]
    if len(names) != len(expected) or sorted(names) != sorted(expected):
        raise InvalidRequest(f"expected inputs {_shown(expected)}, got {_shown(names)}")
    places = {name: at for at, name in enumerate(names)}
    return [places[name] for name in expected]


def _outputs(found: Sequence[Any], wanted: Sequence[Tensor]) -> tuple[int, ...]:
    if not found:
        return tuple(range(len(wanted)))
    places = {tensor.name: at for at, tensor in enumerate(wanted)}
    names = [output.name for output in found]
    if len(places.keys() & names) < len(names):  # one is unknown, or there twice
        raise InvalidRequest(f"expected outputs {_shown(places)}, got {_shown(names)}")
    for output in found:
        _check_parameters(output)
    return tuple(places[name] for name in names)


def _shape(found: SentTensor, wanted: Tensor) -> list[int]:
    shape: list[int] = found.shape[:]  # type: ignore[assignment]
    if wanted.is_text and len(shape) == 2 and shape[1] == 1:
        shape.pop()
    is_alike = found.datatype == wanted.datatype and _fits(shape, wanted.shape)
    if not is_alike or (0 in shape and prod(size or 1 for size in shape) > _MAX_EMPTY_SIZE):
        sizes = str(shape[:8])[:MAX_SHOWN_CHARACTERS]
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


def _num_rows(shapes: list[list[int]], max_rows: int) -> int:
    sizes = [shape[0] for shape in shapes]
    num_rows = sizes[0]
    if min(sizes) != max(sizes):
        raise InvalidRequest(f"expected as many rows of each input, got {sizes[:8]}")
    if num_rows == 0:
        raise InvalidRequest("expected at least 1 row, got 0")
    if num_rows > max_rows:
        raise TooLarge(f"expected at most {max_rows} rows in a request, got {num_rows}")
    return num_rows


def _num_strings(values: Any, tensor: Tensor, shape: Sequence[int]) -> int:
    """Return how many texts an input will be; typed contents are counted by who reads them."""
    is_counted = isinstance(values, bytes | np.ndarray)
    return prod(shape) if is_counted and tensor.datatype == "BYTES" else 0


def _check_parameters(tensor: Any) -> None:
    for name, text in _UNSUPPORTED.items():
        if name in tensor.parameters:
            raise Unsupported(text)


def check_others(num_bytes: int) -> None:
    """Check the number of bytes of a request beside its values.

    Raises:
        InvalidRequest: they are more than an event loop may read at once.
    """
    if num_bytes > _MAX_OTHER_BYTES:
        raise InvalidRequest(
            f"expected at most {_MAX_OTHER_BYTES} bytes beside the tensors, got more"
        )


def _shown(names: Iterable[str]) -> str:
    text = ", ".join(map(repr, names)) or "none"
    return text if len(text) <= 200 else f"{text[:200]}..."
