"""A model's inputs and outputs: named tensors, the check of a caller's arrays, descriptions."""

import array
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Self, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from serving.errors import InvalidRequest

_MAX_SHOWN = 200
"""Names and types that come from a caller are cut to this length in errors."""

_MAX_NAME = 40
"""The longest name of an axis that is shown."""

Array = npt.NDArray[Any]
Feeds = Mapping[str, Array]
"""An array for each input, by its name."""
Images = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]
ClassNumbers: TypeAlias = "bytes | bytearray | array.array[int]"
"""The most probable class of each row: bytes where these hold every class, else C's unsigned
ints."""
Content = Literal["", "text", "json", "bytes", "picture"]
"""The values of a handler's BYTES; "" where a graph says no more, which takes texts."""
BYTE_CLASSES = 256
"""The most classes whose numbers fit into a byte."""

DTYPES: dict[str, np.dtype] = {
    "BOOL": np.dtype(np.bool_),
    "INT8": np.dtype("<i1"), "INT16": np.dtype("<i2"),
    "INT32": np.dtype("<i4"), "INT64": np.dtype("<i8"),
    "UINT8": np.dtype("<u1"), "UINT16": np.dtype("<u2"),
    "UINT32": np.dtype("<u4"), "UINT64": np.dtype("<u8"),
    "FP16": np.dtype("<f2"), "FP32": np.dtype("<f4"), "FP64": np.dtype("<f8"),
    "BYTES": np.dtype(object),
}  # fmt: skip
"""The protocol's data types, and numpy's; BYTES are texts or bytes of any length."""
MAX_LABEL = 100
"""The longest label: it is sent to every client, and printed."""
INPUT, OUTPUT = "images", "probabilities"
"""The names in graphs of classifiers."""
_PIXELS = "uint8"
"""The type of pixels."""


@dataclass(frozen=True, slots=True)
class Tensor:
    """The name, type and shape of an input or an output."""

    name: str
    datatype: str
    """The protocol's name of its type, such as "FP32"; a key of DTYPES."""
    shape: tuple[int, ...]
    """All its axes; -1 for one of any size. Where rows can be batched, the first axis is the
    batch. () is a scalar, or an input of any shape: ONNX Runtime does not say which."""
    names: tuple[str, ...] = field(default=(), repr=False, compare=False)
    """The graph's own names of the axes, such as "batch"; empty where it has none."""
    content: Content = field(default="", repr=False, compare=False)
    """What BYTES of a handler are: "text", "json", "bytes", or "picture", which is a file; empty
    where a graph says no more, which takes texts."""
    dtype: np.dtype = field(init=False, repr=False, compare=False)
    row_bytes: int = field(init=False, repr=False, compare=False)
    """The bytes of one row (all axes but the first); 0 if rows have no fixed size."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", DTYPES[self.datatype])
        is_fixed = self.datatype != "BYTES" and self.shape and min(self.shape[1:], default=1) > 0
        size = math.prod(self.shape[1:]) * self.dtype.itemsize if is_fixed else 0
        object.__setattr__(self, "row_bytes", size)

    @property
    def is_binary(self) -> bool:
        """Whether its elements are bytes, not texts."""
        return self.content in ("bytes", "picture")

    @property
    def is_picture(self) -> bool:
        """Whether its elements are files of pictures, which the server reads."""
        return self.content == "picture"

    @property
    def is_json(self) -> bool:
        """Whether its elements are JSON: values to programs, texts of JSON on the wire."""
        return self.content == "json"

    @property
    def is_text(self) -> bool:
        """Whether a handler gets its elements from texts; others take [N, 1] for [N] of such."""
        return self.content in ("text", "json")

    def no_rows(self) -> Array:
        """Return an array without a row."""
        return np.zeros((0, *(max(0, size) for size in self.shape[1:])), self.dtype)

    @property
    def axes(self) -> list[str]:
        """The size of each axis, or its name; N and ? where the graph names none."""
        names = (*self.names, *[""] * len(self.shape))
        unnamed = "N", *["?"] * len(self.shape)
        return [
            str(size) if size >= 0 else names[at][:_MAX_NAME] or unnamed[at]
            for at, size in enumerate(self.shape)
        ]

    def __str__(self) -> str:
        """Return text such as "x FP32 [batch, 4]"."""
        return f"{self.name} {self.datatype} [{', '.join(self.axes)}]"


def content_of(word: str) -> Content:
    """Return a server's word for what BYTES are; a word of a later version is none."""
    return next((each for each in get_args(Content) if each == word), "")


@dataclass(frozen=True, slots=True)
class TensorSignature:
    """A model's inputs and outputs."""

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    is_batchable: bool
    """Whether the first axis of all of them is the batch, and rows don't depend on one another."""
    in_parts: bool = False
    """Whether a call has any number of answers, each with outputs of its rows."""
    row_bytes: int = field(init=False, repr=False, compare=False)
    """The bytes of a row where requests are rows of one input and can be batched; else 0.

    Such requests travel as bytes; all others as one array for each input.
    """

    def __post_init__(self) -> None:
        is_rows = self.is_batchable and len(self.inputs) == 1
        object.__setattr__(self, "row_bytes", self.inputs[0].row_bytes if is_rows else 0)

    def __str__(self) -> str:
        """Return text such as "x FP32 [N, 4] -> y FP32 [N, 3]"."""
        return " -> ".join(", ".join(map(str, side)) for side in (self.inputs, self.outputs))


def as_names(what: str, names: object) -> tuple[str, ...]:
    """Return names that a caller gives: one, or several in a list or a tuple.

    Raises:
        InvalidRequest: they are others than texts.
    """
    found = (names,) if isinstance(names, str) else names
    is_list = isinstance(found, Iterable) and not isinstance(found, bytes | Mapping)
    texts = []
    for each in found if is_list else (found,):  # type: ignore[attr-defined]
        if not isinstance(each, str) or not is_encodable(each):
            raise InvalidRequest(f"{what}: expected a name, got {each!r:.80}")
        texts.append(each)
    return tuple(texts)


def is_encodable(text: str) -> bool:
    """Return whether a text can be sent: it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def as_feeds(signature: TensorSignature, inputs: object) -> dict[str, Array]:
    """Check the arrays of a call, and convert them where that loses nothing.

    Args:
        signature: of the model.
        inputs: an array for each input, by its name; or the array itself of a model with one
            input. A list, a number or a text may stand for an array.

    Returns:
        The arrays, of the inputs' types and shapes, in the order of the inputs.

    Raises:
        InvalidRequest: an input is missing or unknown, has another type or shape, or there are not
            as many rows of each.
    """
    names = [each.name for each in signature.inputs]
    if type(inputs) is not dict and not isinstance(inputs, Mapping):
        if len(names) != 1:
            raise InvalidRequest(f"expected the inputs {', '.join(names)} by name, got one array")
        inputs = {names[0]: inputs}
    values: Mapping[str, object] = inputs
    if values.keys() != set(names):
        got = ", ".join(map(str, values)) or "none"
        raise InvalidRequest(f"expected the inputs {', '.join(names)}, got {got[:_MAX_SHOWN]}")
    feeds = {each.name: as_array(each, values[each.name]) for each in signature.inputs}
    if signature.is_batchable:
        sizes = [len(array) for array in feeds.values()]
        if 0 in sizes:
            raise InvalidRequest("expected at least 1 row, got 0")
        if len({*sizes} - {1}) > 1:  # one row may be meant for all
            raise InvalidRequest(f"expected as many rows of each input, got {sizes}")
    return feeds


def as_array(tensor: Tensor, value: object) -> Array:
    """Return one input as an array of its type and shape; see `as_feeds`.

    Raises:
        InvalidRequest: it has another type or shape; the text has both.
    """
    if type(value) is np.ndarray and value.dtype == tensor.dtype and _is_row_of(tensor, value):
        return value  # the way of most calls
    # An array of texts without a type would cut bytes off that are 0.
    array = to_array(value, tensor, tensor.dtype if tensor.dtype.kind == "O" else None)
    if array.dtype != tensor.dtype:
        array = _converted(tensor, array, is_typed=hasattr(value, "dtype"))
    elif array.dtype.kind == "O" and not all(isinstance(each, str | bytes) for each in array.flat):
        raise InvalidRequest(f"expected {tensor}, got objects that are no texts")
    if tensor.is_text and array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    # ONNX Runtime says () also of inputs that take any shape.
    wrong = [0 <= size != got for size, got in zip(tensor.shape, array.shape, strict=False)]
    if tensor.shape and (len(tensor.shape) != array.ndim or any(wrong)):
        got = f"the shape {list(array.shape)}"
        if not array.shape:
            one = f"{array.item()!r:.40}"
            got = f"{one}: a list of 1 item is [{one}]"
        raise InvalidRequest(f"expected {tensor}, got {got}")
    return array


def _is_row_of(tensor: Tensor, array: Array) -> bool:
    """Return whether an array is surely as a call has it: rows of numbers of a fixed shape."""
    return tensor.row_bytes > 0 and array.shape[1:] == tensor.shape[1:] and tensor.shape[0] < 0


def to_array(value: object, expected: object, dtype: np.dtype | None = None) -> Array:
    """Return anything as an array.

    Raises:
        InvalidRequest: it can't be one, or has masked elements; the text has `expected`.
    """
    if type(value) is np.ndarray:
        return value
    try:
        array = np.asarray(value, dtype)
    except (MemoryError, TimeoutError):  # as raised by a handler of a signal
        raise
    except Exception as err:  # ragged lists, and anything that an object's __array__ raises
        reason = f"a {type(value).__name__}: {' '.join(str(err).split())}"
        raise InvalidRequest(f"expected {expected}, got {reason[:_MAX_SHOWN]}") from err
    if np.ma.is_masked(value):
        raise InvalidRequest(f"expected {expected}, got a masked array: fill it first")
    return array


def _converted(tensor: Tensor, array: Array, *, is_typed: bool) -> Array:
    """Return an array in the tensor's type.

    Integers go into another type that holds each of them, and float64, which numpy makes of every
    calculation, into float32 where every finite value stays finite. Other arrays that have a type
    must have the right one: floats may be 0..1 or 0..255. Lists have none: their numbers become
    floats that hold them.
    """
    wanted, kind = tensor.dtype, array.dtype.kind
    if array.dtype.newbyteorder("=") == wanted or (wanted.kind == "O" and kind in "US"):
        return array.astype(wanted)
    are_integers = kind in "iu" and wanted.kind in "iu"
    are_floats = array.dtype.str[1:] == "f8" and wanted.str[1:] == "f4"
    is_list = not is_typed and (not array.size or kind in "iuf")
    if are_integers or are_floats or is_list:
        with np.errstate(all="ignore"):
            converted = array.astype(wanted)
        if not array.size or (are_integers and bool((converted == array).all())):
            return converted
        if wanted.kind == "f" and not (np.isinf(converted) & np.isfinite(array)).any():
            return converted
        if are_integers:
            ends = f"from {array.min()} to {array.max()}"
            raise InvalidRequest(f"expected {tensor}, got numbers {ends}, which it can't hold")
        if is_list and wanted.kind == "f":
            raise InvalidRequest(f"expected {tensor}, got a number that it can't hold")
    raise InvalidRequest(f"expected {tensor}, got {_got(array, wanted)}")


def _got(array: Array, wanted: np.dtype) -> str:
    """Name an array's type, and the cast to write if there is one."""
    name = str(array.dtype)[:_MAX_SHOWN]
    if array.dtype.kind in "biuf" and wanted.kind in "biuf":
        return f"{name}: if its values fit, write .astype(numpy.{wanted.name})"
    return name


def finite(text: str) -> float:
    """Parse a number of JSON, as json's `parse_float`.

    Raises:
        ValueError: it is too large for a double, which json makes an infinity of.
    """
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"{text[:20]} is too large for a number")
    return number


@dataclass(frozen=True, slots=True)
class Signature:
    """The shape of an image and the classes; pixels are uint8.

    Raises:
        ValueError: a size is less than 1, or there is not one short label for each class.
    """

    input_shape: tuple[int, ...]
    """The shape of one image, such as (28, 28); its bytes are row-major."""
    num_classes: int
    """The number of classes."""
    labels: tuple[str, ...] = ()
    """The label of each class, in order; empty if the labels are the numbers from 0."""
    image_bytes: int = field(init=False, repr=False, compare=False)
    """Bytes of one image: 784 for 28 x 28."""
    row_bytes: int = field(init=False, repr=False, compare=False)
    """Bytes of one image's probabilities, as float32."""

    def __post_init__(self) -> None:
        sizes = (*self.input_shape, self.num_classes)
        if len(sizes) < 2 or not all(type(size) is int and size > 0 for size in sizes):
            raise ValueError(f"sizes of at least 1 expected, got {sizes}")
        if self.labels and len(self.labels) != self.num_classes:
            raise ValueError(f"{self.num_classes} labels expected, got {len(self.labels)}")
        if not all(map(is_label, self.labels)):
            raise ValueError(f"a label must be 1 to {MAX_LABEL} printable characters")
        if self.labels == tuple(map(str, range(self.num_classes))):
            object.__setattr__(self, "labels", ())
        object.__setattr__(self, "image_bytes", math.prod(self.input_shape))
        object.__setattr__(self, "row_bytes", 4 * self.num_classes)

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Self:
        """Parse a manifest's `signature`.

        Raises:
            KeyError, TypeError, ValueError: a field is missing or wrong.
        """
        if document["dtype"] != _PIXELS:
            raise ValueError(f"dtype {_PIXELS} expected, got {document['dtype']!r}")
        labels = tuple(document.get("labels") or ())
        return cls(tuple(document["input_shape"]), document["classes"], labels)

    @property
    def tensors(self) -> TensorSignature:
        """The tensors of a graph with this signature, as the exporter names them."""
        images = Tensor(INPUT, "UINT8", (-1, self.image_bytes))
        probabilities = Tensor(OUTPUT, "FP32", (-1, self.num_classes))
        return TensorSignature((images,), (probabilities,), is_batchable=True)

    def document(self) -> dict[str, Any]:
        """Return it as in a manifest."""
        labels = {"labels": list(self.labels)} if self.labels else {}
        shape = list(self.input_shape)
        return {"input_shape": shape, "dtype": _PIXELS, "classes": self.num_classes, **labels}

    def __str__(self) -> str:
        """Return text such as "28 x 28 uint8 -> 10 classes"."""
        shape = " x ".join(map(str, self.input_shape))
        return f"{shape} {_PIXELS} -> {self.num_classes} classes"


def is_label(label: object) -> bool:
    """Return whether it is a text that can be sent to clients and printed."""
    return isinstance(label, str) and 0 < len(label) <= MAX_LABEL and label.isprintable()


# Answers and descriptions, the same in process and over the network


class Outputs(dict[str, Array]):
    """The outputs of a model: an array for each, by its name.

    `model_version` is the version that answered, such as "3".
    """

    def __init__(self, arrays: Mapping[str, Array], model_version: str = "") -> None:
        super().__init__(arrays)
        self.model_version = model_version


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelInfo:
    """A model: its inputs and outputs, how it is run, and its limits."""

    name: str
    version: str
    """The version that is described: the default one unless another was asked for."""
    versions: tuple[str, ...]
    """The versions in service, newest first."""
    default_version: str
    """The version that answers calls that name none."""
    canary_version: str | None = None
    """The version that answers a share of those calls, if there is one."""
    not_served: Mapping[str, str] = field(default_factory=dict)
    """The versions that are there and not served, and why."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    is_batchable: bool
    """Whether the first axis is the batch, and no row depends on another."""
    in_parts: bool = False
    """Whether it answers in parts: see `stream`."""
    batching: str = ""
    """Why rows are batched, or are not; empty if the server does not say."""
    device: str = ""
    """The device that it runs on, such as "cpu"; empty if the server does not say, as the next."""
    precision: str = ""
    """The variant that runs: "fp32" or "int8", or of a version that `optimize` made, its only one,
    "fp32"."""
    optimized: str = ""
    """How `optimize` made this version and of what, such as "int8 u8, of mine version 1"; empty for
    others."""
    max_batch_size: int
    """The most rows in one run; 0 for a model that is not batched."""
    max_request_rows: int | None = None
    """The most rows in one request; None if there is no limit, as for a model that is not batched,
    or none is known."""
    max_message_bytes: int | None = None
    """The most bytes of one request; likewise."""
    labels: tuple[str, ...] = ()
    """The names of its classes, if it has any."""
    pictures: Mapping[str, Any] | None = None
    """How pictures become its input, as a `classifier.json` has it; None if it takes none."""
    test_accuracy: float | None = None
    """Share of the test samples answered correctly, 0 to 1, if its manifest says it."""

    @property
    def tensors(self) -> TensorSignature:
        """The inputs and outputs, and whether rows can be batched."""
        sides = self.inputs, self.outputs
        return TensorSignature(*sides, self.is_batchable, self.in_parts)
