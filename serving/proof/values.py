"""What the proof of batching knows of a graph's tensors, and a node as its rules see it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

import numpy as np

from serving.proof.arrays import Array
from serving.proof.onnx_file import Message
from serving.proof.sizes import Size, Unknowns

MAX_ITEMS = 64
"""The longest shape whose elements are followed."""


MAX_RANK = 12
"""The most axes of a tensor."""
_MAX_TEXT = 100
"""Characters of a graph's own names in a reason."""


class Mixes(Exception):
    """Rows are not proved independent; the text says where and why."""

    def __init__(self, reason: str, *, is_located: bool = False) -> None:
        super().__init__(reason)
        self.is_located = is_located


@dataclass(frozen=True, slots=True)
class Numbers:
    """Elements that count: the number of a row times a size, and a whole number less than it."""

    times: Size
    """The size; of a constant, all elements are at least 0 and less than it."""
    along: int | None = None
    """The axis along which rows are counted; None for a constant."""
    is_exact: bool = False
    """Whether nothing is added."""
    is_tuple: bool = False
    """Whether these are the first of the elements along the last axis, and the others constants."""


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of a tensor."""

    shape: tuple[Size, ...]
    """The sizes of its axes."""
    axis: int | None = None
    """The axis that rows are along; None if it holds no rows."""
    outer: Size | None = None
    """How many times all the rows stand one after another along it; None, in a rule's result, as
    often as in the inputs. [5, N, 8] reshaped to [5 N, 8] has them 5 times."""
    items: Array | None = field(default=None, compare=False)
    """The elements of a small tensor of whole numbers, each a Size, if sizes and constants decide
    them."""
    is_narrow: bool = False
    """Whether these are int32, so that sums and products may overflow."""
    varies: bool = False
    """Whether it depends on the number of rows, in a way that is not followed."""
    data: Array | None = field(default=None, compare=False)
    """The elements of a small constant, such as scales."""
    numbers_of: Numbers | None = field(default=None, compare=False)
    """How its elements count rows, if they do."""
    dtype: str = field(default="", compare=False)
    """The name of its elements' type (dtypes.py); "" if that is not known."""
    is_mean: bool = False
    """Whether it is a mean of constants without the axis that it is over, or has the shape of one
    that it is computed from: a node that ONNX Runtime leaves out."""
    sources: frozenset[str] = frozenset()
    """The batch axes of inputs that its rows are those of."""

    @property
    def rank(self) -> int:
        """The number of its axes."""
        return len(self.shape)

    @property
    def is_rows(self) -> bool:
        """Whether it holds rows."""
        return self.axis is not None

    @property
    def is_size(self) -> bool:
        """Whether it depends on the number of rows without holding rows."""
        return self.varies or any(each.varies for each in self.vector or ())

    @property
    def rows(self) -> Size:
        """The size of its axis of rows; Mixes if it has none."""
        if self.axis is None:
            raise Mixes("rows meet a constant with an element for each row")
        return self.shape[self.axis]

    @property
    def vector(self) -> tuple[Size, ...] | None:
        """The elements in order."""
        return None if self.items is None else tuple(self.items.reshape(-1))

    @property
    def numbers(self) -> tuple[int, ...] | None:
        """The elements in order, if all are numbers."""
        found = tuple(each.number for each in self.vector or ())
        is_known = self.items is not None and None not in found
        return cast(tuple[int, ...], found) if is_known else None


@dataclass(frozen=True, slots=True)
class Node:
    """One node with its inputs, as a rule sees it."""

    op: str
    """The operator, as `operator_of` names it."""
    version: int
    """The version of the operator's set."""
    inputs: Sequence[Value | None]
    """None for an optional input that is left out."""
    is_used: Sequence[bool]
    """For each output, whether it has a name."""
    attributes: dict[str, Message]
    unknowns: Unknowns
    has_texts: bool
    """Whether any tensor of the model may be of strings."""

    @property
    def given(self) -> list[Value]:
        """The inputs that are not left out."""
        return [each for each in self.inputs if each is not None]

    def has(self, index: int) -> bool:
        """Return whether there is an input."""
        return index < len(self.inputs) and self.inputs[index] is not None

    def value(self, index: int) -> Value:
        """Return an input that must be there."""
        value = self.inputs[index] if index < len(self.inputs) else None
        if value is None:
            raise Mixes(f"it has no input {index}")
        return value

    def number(self, name: str, default: int) -> int:
        """Return an attribute that is an integer."""
        # ONNX Runtime refuses attributes of another type, and two of one name.
        return int(self.attributes[name].i) if name in self.attributes else default

    def text(self, name: str, default: str = "") -> str:
        """Return an attribute that is a text."""
        attribute = self.attributes.get(name)
        return default if attribute is None else attribute.s.decode("utf-8", "replace")

    def numbers(self, name: str, index: int | None = None) -> tuple[int, ...] | None:
        """Return integers of an attribute or, in newer sets, of an input; None if left out."""
        if name in self.attributes:
            if len(self.attributes[name].ints) > MAX_ITEMS:
                raise Mixes(f"its {name} are too many")
            return tuple(self.attributes[name].ints)
        if index is None or not self.has(index):
            return None
        numbers = self.value(index).numbers
        if numbers is None:
            raise Mixes(f"its {name} are computed")
        return numbers

    def new_size(self, mark: str = "?") -> Size:
        """Return an unknown size, which depends on anything that the inputs depend on."""
        return self.unknowns.new("N?" if any(each.is_size for each in self.given) else mark)

    def outputs(self, *values: Value) -> list[Value]:
        """Return outputs that have a rule; Mixes if another one is used."""
        if any(self.is_used[len(values) :]):
            raise Mixes(f"its output {len(values)} has no rule")
        return list(values)


def shown(text: Any) -> str:
    """Return a graph's own text, safe in a line of a log."""
    return "".join(each if each.isprintable() else "?" for each in str(text)[:_MAX_TEXT])


def sizes_of(sizes: Iterable[Size]) -> Array:
    """Return sizes as the elements of a vector."""
    sizes = list(sizes)
    items = np.empty(len(sizes), object)
    items[:] = sizes
    return items


def computed(items: Array, *, is_narrow: bool = False) -> Value:
    """Return the value of a tensor whose elements are these sizes."""
    return Value(tuple(map(Size.of, items.shape)), items=items, is_narrow=is_narrow)


def constant(data: Array | None, dims: Sequence[Any]) -> Value:
    """Return the value of a constant; data is None if it is large.

    Elements of other types than shapes have are not followed: a uint8 overflows early.
    """
    if data is not None and data.dtype in (bool, np.int32, np.int64) and data.size <= MAX_ITEMS:
        items = sizes_of(Size.of(int(each)) for each in data.flat).reshape(data.shape)
        return replace(computed(items, is_narrow=data.dtype == np.int32), data=data)
    return Value(tuple(map(Size.of, dims)), data=data)
