"""Sizes of axes as the proof knows them: sums of products of named unknowns, with bounds.

A size is a number, or depends on the number of rows and on the open axes of inputs. Two sizes are
equal only where they are equal for all values of their unknowns.

The name of an unknown says what is known of it:

- "N" is the number of rows: 1 to MOST_ROWS;
- "+7" is an axis of an input: 1 to MOST_SIZE;
- "*7" is an axis of a tensor in the graph: at least 1;
- "?7" is any number, and may even be 0 or negative;
- "N?7" is any number that depends on the number of rows.

A proof holds within the first two bounds: calls with larger sizes may not share a batch.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import prod
from typing import Self

MOST_ROWS = 16_384
"""The largest batch that a proof is about. What a graph computes of the number of rows can overflow
with more."""
MOST_SIZE = 2_000_000
"""The largest axis of an input that a proof is about, for the same reason."""
_MAX_TERMS, _MAX_NAMES = 32, 8
"""Longer sums and products are given up, so that a hostile graph takes no time."""
_N = "N"
_BOUNDS = {_N: MOST_ROWS, "+": MOST_SIZE, "*": 1 << 40}
"""The most that an unknown is, by the first letter of its name. No machine holds a tensor with an
axis of 2^40."""
_INT32, _INT64 = 1 << 31, 1 << 63
"""Where the types of sizes overflow."""

Monomial = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Size:
    """A whole number that sizes of axes decide: a sum of products of named unknowns."""

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
    def name(self) -> str | None:
        """The name of the unknown, if it is one and nothing else."""
        if len(self.terms) != 1:
            return None
        ((monomial, factor),) = self.terms
        return monomial[0] if len(monomial) == 1 and factor == 1 else None

    def at(self, unknowns: Mapping[str, int]) -> int | None:
        """Return the number that it is where unknowns have these sizes; None if one is missing."""
        names = {name for monomial, _ in self.terms for name in monomial}
        if not names <= unknowns.keys():
            return None
        return sum(
            factor * prod(unknowns[name] for name in monomial) for monomial, factor in self.terms
        )

    @property
    def is_positive(self) -> bool:
        """Whether it is at least 1 for sure, also as an int64 that a graph computes."""
        return bool(self.terms) and self.fits() and all(factor > 0 for _, factor in self.terms)

    def fits(self, limit: int = _INT64) -> bool:
        """Return whether a graph computes it without overflow, for all sizes of axes."""
        most = 0
        for monomial, factor in self.terms:
            bounds = [_bound(name) for name in monomial]
            if None in bounds:
                return False
            most += abs(factor) * prod(each for each in bounds if each)
        return most < limit

    @property
    def varies(self) -> bool:
        """Whether it depends on the number of rows."""
        return any(name[0] == _N for monomial, _ in self.terms for name in monomial)

    @property
    def is_closed(self) -> bool:
        """Whether it is unknown, and open axes and rows may have no part in it."""
        names = {name[0] for monomial, _ in self.terms for name in monomial}
        return bool(names) and names.isdisjoint((_N, "+"))

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
        self._ends: dict[Size, Size] = {}
        """Sizes that are the smaller of a number from 2 on and another size, which is here."""

    def of(self, operation: object, *operands: Size, mark: str = "?") -> Size:
        """Return an operation's result, which depends on the operands only.

        Args:
            operation: its name and all else that decides the result.
            operands: the sizes that it is applied to.
            mark: what is known of the result, if it does not depend on the number of rows.
        """
        if any(each.varies for each in operands):
            mark = "N?"
        key = operation, operands, mark
        return Size.unknown(self._names.setdefault(key, f"{mark}{len(self._names)}"))

    def at_most(self, number: int, end: Size) -> Size:
        """Return the smaller of a number from 2 on and a size of at least 1."""
        size = self.of(("at most", number), end, mark="*")
        self._ends[size] = end
        return size

    def end_of(self, size: Size) -> Size | None:
        """Return the other size that one is equal to, if it is not the smaller number."""
        return self._ends.get(size)

    def new(self, mark: str = "?") -> Size:
        """Return an unknown that is no other's, of a kind: "?", "*", "+" or "N?"."""
        name = f"{mark}{len(self._names)}"
        self._names[object()] = name
        return Size.unknown(name)

    def bounded(self, size: Size) -> Size:
        """Return a size, or an unknown in place of a long product or a huge number."""
        is_short = all(
            len(monomial) <= _MAX_NAMES and abs(factor) < _INT64 for monomial, factor in size.terms
        )
        if is_short:
            return size
        return self.new("N?" if size.varies else "?")

    def narrow(self, size: Size) -> Size:
        """Return what an int32 holds of a size: another one where it may overflow."""
        return size if size.fits(_INT32) else self.of("int32", size)


def _bound(name: str) -> int | None:
    if name[0] == _N and name != _N:
        return None
    return _BOUNDS.get(name[0])


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
