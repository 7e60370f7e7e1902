"""The kinds of a handler's inputs and outputs: texts, bytes, pictures, arrays.

A kind says how a value looks to the handler, on the wire, and as JSON:

    kind       to the handler                        wire      JSON
    Text       a list of `str`                       BYTES     text
    Json       a list of values                      BYTES     text: JSON in a string
    Bytes      a list of `bytes`                     BYTES     base64
    Picture    a list of (H, W, 3) uint8 arrays      BYTES     base64 of the file
    Array      an array of (N, *shape)               its type  numbers

Each has one value for each row of a call.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, get_args

import numpy as np

from serving import json_values
from serving.errors import ConfigurationError
from serving.tensors import DTYPES, Tensor, is_encodable
from serving.tensors import Array as NumpyArray

_NAMES = {dtype.name: name for name, dtype in DTYPES.items() if dtype.kind != "O"}
"""The protocol's data types by numpy's names."""
_MAX_SHOWN = 80
_TEXT = "text"
"""In place of numpy's name of a type."""


class WrongValue(Exception):
    """A handler returned something else than it declares; the text has both."""


@dataclass(frozen=True, slots=True)
class Text:
    """A text for each row, or texts of a shape.

    Without a shape callers may send [N, 1], too, as other servers want it.
    """

    shape: tuple[int, ...] = ()
    """The axes of a row; -1 for one of any size."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "shape", _axes("Text", self.shape))

    def tensor(self, name: str) -> Tensor:
        """Return the description of an input or output of this kind."""
        # Of several texts a row is no body or field of its own: they are a tensor as any.
        return Tensor(name, "BYTES", (-1, *self.shape), content="" if self.shape else "text")

    def received(self, name: str, array: NumpyArray) -> Any:
        """Return a caller's values as the handler sees them."""
        return array.tolist()

    def returned(self, name: str, value: Any, num_rows: int) -> NumpyArray:
        """Return a handler's values as an array.

        Raises:
            WrongValue: they are others.
        """
        if not self.shape:
            return _objects(name, value, num_rows, str, "texts (str)")
        array = as_typed(self.tensor(name), value, num_rows)
        wrong = next((each for each in array.flat if not isinstance(each, str)), None)
        if wrong is not None:
            raise WrongValue(f"{name}: expected texts (str), got {repr(wrong)[:_MAX_SHOWN]}")
        return array


@dataclass(frozen=True, slots=True)
class Json:
    """A value of JSON for each row: an object, a list, a text, a number, True, False or None.

    On the wire it is JSON text in UTF-8. Python clients send and return the values.
    """

    def tensor(self, name: str) -> Tensor:
        """Return the description of an input or output of this kind."""
        return Tensor(name, "BYTES", (-1,), content="json")

    def received(self, name: str, array: NumpyArray) -> Any:
        """Return the values of a caller's texts.

        Raises:
            InvalidRequest: one is no JSON; the text has its row.
        """
        return json_values.parsed(name, array)

    def returned(self, name: str, value: Any, num_rows: int) -> NumpyArray:
        """Return a handler's values as an array of JSON texts.

        Raises:
            WrongValue: JSON can't hold one, or there are not as many as rows.
        """
        found = value.tolist() if isinstance(value, np.ndarray) else value
        if not isinstance(found, list | tuple) or len(found) != num_rows:
            got = f"{len(found)}" if isinstance(found, list | tuple) else _named(value)
            raise WrongValue(f"{name}: expected a list of {num_rows} values of JSON, got {got}")
        texts = []
        for row, each in enumerate(found):
            try:
                texts.append(json_values.write(each))
            except ValueError as err:
                raise WrongValue(f"{name}: row {row} can't be JSON: {err}") from err
        return json_values.column_of(texts)


@dataclass(frozen=True, slots=True)
class Bytes:
    """Bytes for each row, such as a sound or a file."""

    def tensor(self, name: str) -> Tensor:
        """Return the description of an input or output of this kind."""
        return Tensor(name, "BYTES", (-1,), content="bytes")

    def received(self, name: str, array: NumpyArray) -> Any:
        """Return a caller's values as bytes, texts in UTF-8."""
        return [each.encode() if isinstance(each, str) else each for each in array.tolist()]

    def returned(self, name: str, value: Any, num_rows: int) -> NumpyArray:
        """Return a handler's bytes as an array, as `Text` does texts."""
        return _objects(name, value, num_rows, bytes, "bytes")


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture for each row: the caller sends a file, the handler gets an array of RGB pixels.

    It is decoded in another process, with limits of size and memory. Only an input can be one.
    """

    def tensor(self, name: str) -> Tensor:
        """Return the description of an input of this kind."""
        return Tensor(name, "BYTES", (-1,), content="picture")

    def received(self, name: str, array: NumpyArray) -> Any:
        """Return a caller's pictures: the array's elements are pixels already."""
        return array.tolist()

    def returned(self, name: str, value: Any, num_rows: int) -> NumpyArray:
        """Refuse any value: a picture is no output."""
        raise WrongValue(f"{name}: a picture can't be an output")


@dataclass(frozen=True, slots=True)
class Array:
    """An array of one type: a number for each row, or an array of a shape."""

    dtype: str
    """numpy's name of the type, such as "float32"."""
    shape: tuple[int, ...] = ()
    """The axes of a row; -1 for one of any size."""
    datatype: str = field(init=False, repr=False)
    """The protocol's name of the type, such as "FP32"."""

    def __post_init__(self) -> None:
        try:
            name = np.dtype(self.dtype).name
            object.__setattr__(self, "datatype", _NAMES[name])
        except (TypeError, KeyError) as err:
            known = ", ".join(_NAMES)
            raise ConfigurationError(f"Array: expected one of {known}, got {self.dtype!r}") from err
        object.__setattr__(self, "dtype", name)
        object.__setattr__(self, "shape", _axes("Array", self.shape))

    def tensor(self, name: str) -> Tensor:
        """Return the description of an input or output of this kind."""
        return Tensor(name, self.datatype, (-1, *self.shape))

    def received(self, name: str, array: NumpyArray) -> Any:
        """Return a caller's array as it is."""
        return array

    def returned(self, name: str, value: Any, num_rows: int) -> NumpyArray:
        """Return a handler's value as an array of this type, as `Text` does texts."""
        return as_typed(_tensor(name, self), value, num_rows)


@lru_cache(1024)
def _tensor(name: str, kind: Array) -> Tensor:
    return kind.tensor(name)


Kind = Text | Json | Bytes | Picture | Array
_BY_NAME: dict[str, Callable[[], Kind]] = {each.__name__: each for each in get_args(Kind)}


def _axes(kind: str, found: object) -> tuple[int, ...]:
    """Return the axes of a row.

    Raises:
        ConfigurationError: they are none.
    """
    shape = tuple(found) if isinstance(found, tuple | list | str) else (found,)
    if not all(type(size) is int and (size > 0 or size == -1) for size in shape):
        raise ConfigurationError(
            f"{kind}: expected a shape of sizes from 1, or -1 for any, got {found!r}"
        )
    return shape


def as_typed(tensor: Tensor, value: Any, num_rows: int | None = None) -> NumpyArray:
    """Return a value as an array of a tensor's type and shape, where nothing is lost.

    Args:
        tensor: the type and the shape.
        value: an array, or lists of numbers or texts.
        num_rows: how many rows it must have; None for any number.

    Raises:
        WrongValue: it has another type or shape.
    """
    wanted = tensor.dtype
    try:
        array = np.asarray(value, None if wanted.kind != "O" else object)
    except Exception as err:  # ragged lists, and anything that an object's __array__ raises
        raise WrongValue(f"{tensor.name}: expected {tensor}, got {_named(value)}: {err}") from err
    if wanted.kind == "O":
        for each in array.flat:
            if not isinstance(each, str | bytes):
                raise WrongValue(f"{tensor.name}: expected {tensor}, got {_named(value)}")
            if not is_writable(each):
                raise WrongValue(_surrogate(tensor.name, each))
    elif array.dtype != wanted:
        is_close = array.dtype.kind in "biuf" and np.can_cast(array.dtype, wanted, "same_kind")
        if array.size and not is_close and not _holds(array, wanted):
            raise WrongValue(f"{tensor.name}: expected {tensor}, got {array.dtype.name}")
        array = array.astype(wanted)
    sizes = tensor.shape if num_rows is None or not tensor.shape else (num_rows, *tensor.shape[1:])
    if tensor.shape and (
        array.ndim != len(sizes)
        or any(0 <= size != got for size, got in zip(sizes, array.shape, strict=True))
    ):
        raise WrongValue(
            f"{tensor.name}: expected the shape {_shape(sizes)}, got {list(array.shape)}"
        )
    return np.ascontiguousarray(array)


def _holds(array: NumpyArray, wanted: np.dtype[Any]) -> bool:
    """Return whether integers fit another type of integers or floats."""
    if array.dtype.kind not in "biu" or wanted.kind not in "iuf":
        return False
    return bool((array.astype(wanted) == array).all())


def _shape(sizes: Sequence[int]) -> str:
    return f"[{', '.join('any' if size < 0 else str(size) for size in sizes)}]"


def is_writable(value: object) -> bool:
    """Return whether a value is bytes, or a text that UTF-8 can hold."""
    return is_encodable(value) if isinstance(value, str) else isinstance(value, bytes)


def _named(value: object) -> str:
    return type(value).__name__


def _surrogate(name: str, text: object) -> str:
    return f"{name}: expected a text that UTF-8 can hold, got {repr(text)[:_MAX_SHOWN]}"


def _objects(name: str, value: Any, num_rows: int, kind: type, words: str) -> NumpyArray:
    found = value.tolist() if isinstance(value, np.ndarray) else value
    if isinstance(found, str | bytes) or not isinstance(found, Sequence):
        raise WrongValue(f"{name}: expected a list of {num_rows} {words}, got {_named(value)}")
    if len(found) != num_rows:
        raise WrongValue(f"{name}: expected {num_rows} {words}, one for each row, got {len(found)}")
    wrong = next((each for each in found if not isinstance(each, kind)), None)
    if wrong is not None or None in found:
        raise WrongValue(f"{name}: expected {words}, got {repr(wrong)[:_MAX_SHOWN]}")
    unwritable = next((each for each in found if not is_writable(each)), None)
    if unwritable is not None:
        raise WrongValue(_surrogate(name, unwritable))
    array = np.empty(num_rows, object)
    array[:] = found
    return array


def document_of(kinds: Mapping[str, Kind]) -> dict[str, Any]:
    """Return kinds by name as JSON has them."""
    return {name: _fact_of(kind) for name, kind in kinds.items()}


def _fact_of(kind: Kind) -> Any:
    if isinstance(kind, Array):
        return [kind.dtype, list(kind.shape)]
    if isinstance(kind, Text) and kind.shape:
        return [_TEXT, list(kind.shape)]
    return type(kind).__name__


def kinds_of(document: Mapping[str, Any]) -> dict[str, Kind]:
    """Parse `document_of`.

    Raises:
        KeyError, TypeError, ValueError, ConfigurationError: it is malformed.
    """
    return {name: _kind_of(each) for name, each in document.items()}


def _kind_of(fact: Any) -> Kind:
    if isinstance(fact, str):
        return _BY_NAME[fact]()
    name, shape = fact
    return Text(tuple(shape)) if name == _TEXT else Array(name, tuple(shape))
