"""What the proof of batching knows of a graph's tensors, and a node as its rules see it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Self, cast

import numpy as np

from serving.model.onnx_file import Message
from serving.tensors import Array

_MAX_TERMS, _MAX_NAMES = 32, 8
"""Longer sums and products are given up, so that a hostile graph takes no time."""
_N = "N"
_MOST_ROWS, _MOST = 1_000, 2_000_000
"""Rows of a batch, and the size of another axis of an input: both together are an input of less
than 2^31 elements."""
_INT32, _INT64 = 1 << 31, 1 << 53
"""What an int32 holds; and an int64, even if an axis is larger than that."""

Monomial = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Size:
    """A whole number that sizes of axes decide: a sum of products of named unknowns.

    The name of an unknown says what is known of it: "N" is the number of rows, "+7" is one or
    more, "?7" any number, "N?7" any number that depends on the number of rows.
    """

    terms: tuple[tuple[Monomial, int], ...]
    """Products and their factors, sorted, none of them 0."""

    @classmethod
    def of(cls, number: int) -> Self:
        """Return a number."""
        return cls((((), number),) if number else ())

    @classmethod
    def unknown(cls, name: str) -> Self:
        """Return an unknown."""
        return cls((((name,), 1),))

    @property
    def number(self) -> int | None:
        """The number, if there is no unknown in it."""
        if not self.terms:
            return 0
        (monomial, factor), *more = self.terms
        return None if more or monomial else factor

    @property
    def is_positive(self) -> bool:
        """Whether it is at least 1 for sure."""
        return bool(self.terms) and self.fits() and all(factor > 0 for _, factor in self.terms)

    def fits(self, limit: int = _INT64) -> bool:
        """Return whether a graph computes it without overflow, for all sizes of axes."""
        return all(
            name[0] == "+" or name == _N for monomial, _ in self.terms for name in monomial
        ) and limit > sum(
            abs(factor) * prod(_MOST_ROWS if name == _N else _MOST for name in monomial)
            for monomial, factor in self.terms
        )

    @property
    def varies(self) -> bool:
        """Whether it depends on the number of rows."""
        return any(name[0] == _N for monomial, _ in self.terms for name in monomial)

    @property
    def per_row(self) -> "Size | None":
        """Its share of one row, where it is the number of rows times that; else None."""
        if not self.terms or any(monomial.count(_N) != 1 for monomial, _ in self.terms):
            return None
        share = _sum((_without(monomial, (_N,)), factor) for monomial, factor in self.terms)
        return None if share.varies else share

    def __add__(self, other: "Size") -> "Size":
        return _sum([*self.terms, *other.terms])

    def __sub__(self, other: "Size") -> "Size":
        return _sum([*self.terms, *((monomial, -factor) for monomial, factor in other.terms)])

    def __mul__(self, other: "Size") -> "Size":
        return _sum(
            (tuple(sorted(mine + others)), factor * times)
            for mine, factor in self.terms
            for others, times in other.terms
        )

    def divided(self, other: "Size") -> "Size | None":
        """Return the quotient, if each term can be divided; else None."""
        if self == other and other.terms:
            return Size.of(1)
        if len(other.terms) != 1:
            return None
        ((divisor, times),) = other.terms
        quotient = []
        for monomial, factor in self.terms:
            rest = _without(monomial, divisor)
            if factor % times or len(rest) != len(monomial) - len(divisor):
                return None
            quotient.append((rest, factor // times))
        return _sum(quotient)


ONE = Size.of(1)
ROWS = Size.unknown(_N)
"""The number of rows."""


def product(sizes: Iterable[Size]) -> Size:
    """Multiply sizes."""
    result = ONE
    for size in sizes:
        result *= size
    return result


class Unknowns:
    """Names of unknown results: the same operation on the same sizes has the same name."""

    def __init__(self) -> None:
        self._names: dict[object, str] = {}

    def of(self, operation: str, *operands: Size) -> Size:
        """Return an operation's result, which depends on the operands only."""
        mark = "N?" if any(each.varies for each in operands) else "?"
        key = operation, operands
        return Size.unknown(self._names.setdefault(key, f"{mark}{len(self._names)}"))

    def new(self, mark: str = "?") -> Size:
        """Return an unknown that is no other's, of a kind: "?", "+" or "N?"."""
        name = f"{mark}{len(self._names)}"
        self._names[object()] = name
        return Size.unknown(name)

    def bounded(self, size: Size) -> Size:
        """Return a size, or an unknown in place of a long product or a huge number."""
        is_short = all(
            len(monomial) <= _MAX_NAMES and abs(factor) < _INT64 for monomial, factor in size.terms
        )
        return size if is_short else self.new("N?" if size.varies else "?")

    def narrow(self, size: Size) -> Size:
        """Return what an int32 holds of a size: another one where it may overflow."""
        return size if size.fits(_INT32) else self.of("int32", size)


def _sum(terms: Iterable[tuple[Monomial, int]]) -> Size:
    total: dict[Monomial, int] = {}
    for monomial, factor in terms:
        total[monomial] = total.get(monomial, 0) + factor
        if len(total) > _MAX_TERMS:
            raise OverflowError("a size is a sum of too many terms")
    return Size(tuple(sorted((each, factor) for each, factor in total.items() if factor)))


def _without(monomial: Monomial, divisor: Monomial) -> Monomial:
    rest = list(monomial)
    for name in divisor:
        if name in rest:
            rest.remove(name)
    return tuple(rest)


MAX_ITEMS = 64
"""The longest shape whose elements are followed."""


class Mixes(Exception):
    """Rows are not proved independent; the text says where and why."""

    def __init__(self, reason: str, *, is_located: bool = False) -> None:
        super().__init__(reason)
        self.is_located = is_located


@dataclass(frozen=True, slots=True)
class Value:
    """What is known of a tensor."""

    shape: tuple[Size, ...] | None = None
    """The sizes of its axes; None if not even their number is known, which only constants may."""
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
    sources: frozenset[str] = frozenset()
    """The batch axes of inputs that its rows are those of."""

    @property
    def is_rows(self) -> bool:
        """Whether it holds rows."""
        return self.axis is not None

    @property
    def is_size(self) -> bool:
        """Whether it depends on the number of rows without holding rows."""
        return self.varies or any(each.varies for each in self.vector or ())

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

    @property
    def known_shape(self) -> tuple[Size, ...]:
        """Its shape; Mixes if that is unknown."""
        if self.shape is None:
            raise Mixes("the shape of a constant is unknown")
        return self.shape


@dataclass(frozen=True, slots=True)
class Node:
    """One node with its inputs, as a rule sees it."""

    op: str
    """The operator; with its domain before it, if it is not one of ONNX's own two."""
    version: int
    """Of the operator's set."""
    inputs: Sequence[Value | None]
    """None for an optional input that is left out."""
    num_outputs: int
    is_used: Sequence[bool]
    """For each output, whether it has a name."""
    attributes: dict[str, Message]
    unknowns: Unknowns

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
        return int(self.attributes[name].i) if name in self.attributes else default

    def text(self, name: str, default: str = "") -> str:
        """Return an attribute that is a text."""
        attribute = self.attributes.get(name)
        return default if attribute is None else attribute.s.decode("utf-8", "replace")

    def numbers(self, name: str, index: int | None = None) -> tuple[int, ...] | None:
        """Return integers of an attribute or, in newer sets, of an input; None if left out."""
        if name in self.attributes:
            return tuple(self.attributes[name].ints)
        if index is None or not self.has(index):
            return None
        numbers = self.value(index).numbers
        if numbers is None:
            raise Mixes(f"its {name} are computed")
        return numbers

    def new_size(self) -> Size:
        """Return an unknown size that depends on other sizes than the number of rows."""
        return self.unknowns.new()


def sizes_of(sizes: Iterable[Size]) -> Array:
    """Return sizes as the elements of a vector."""
    sizes = list(sizes)
    items = np.empty(len(sizes), object)
    items[:] = sizes
    return items


def computed(items: Array, *, is_narrow: bool = False) -> Value:
    """Return the value of a tensor whose elements are these sizes."""
    return Value(tuple(map(Size.of, items.shape)), items=items, is_narrow=is_narrow)


def constant(data: Array | None, dims: tuple[int, ...]) -> Value:
    """Return the value of a constant; data is None if it is large.

    Elements of other types than shapes have are not followed: a uint8 overflows early.
    """
    if data is not None and data.dtype in (bool, np.int32, np.int64) and data.size <= MAX_ITEMS:
        items = sizes_of(Size.of(int(each)) for each in data.flat).reshape(data.shape)
        return replace(computed(items, is_narrow=data.dtype == np.int32), data=data)
    return Value(tuple(map(Size.of, dims)), data=data)
