"""Drawn inputs of a model that nobody has described, and how far two answers to them differ."""

import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, Protocol

import numpy as np

from serving.proof.arrays import Array, Feeds

NUM_ROWS = 8
AXES = 32, 8, 1, 64, 512
"""Sizes that are tried for all axes but the first that have none in the graph."""
MAX_BYTES = 16 << 20
"""The most that a batch's inputs, or its outputs, take."""
_FLOOR = 0.01
"""Share of a row's greatest number that counts as the magnitude of small ones."""
NUM_QUIET = 5
"""Rows that are compared with themselves; of the loud ones only rounding would show."""
_QUIET: tuple[Callable[[Array], Any], ...] = (
    lambda raw: raw / 127.5 - 1,
    lambda raw: (raw + 1.0) / 256,
    lambda raw: raw * 1.0,
    lambda raw: np.where(raw & 1, 1, -1) * 10.0 ** (raw / 64),
    lambda raw: raw * 0.0,
)
"""Values of one row each: from -1 to 1, from 0 to 1, from 0 to 255, of every magnitude as tables
have, and 0."""
_LOUD: tuple[Callable[[Array], Any], ...] = (
    lambda raw: np.where(raw & 1, 1e30, -1e30),
    lambda raw: np.where(raw & 1, np.inf, raw / 256),
    lambda raw: np.where(raw & 1, np.nan, raw / 256),
    lambda raw: np.where(raw == raw.max(initial=0), 1e9, raw / 256),
    lambda raw: np.where(raw & 1, 3e38, -3e38),
    lambda raw: raw * 0.0 - np.inf,
    lambda raw: raw * 1e4,
    lambda raw: raw * 0.0 + np.nan,
    lambda raw: np.where(raw & 1, 1e-38, -1e-38),
)
"""Values of one loud row each: the first three for the first seed, the next for the next."""


class Input(Protocol):
    """An input of a model."""

    @property
    def name(self) -> str:
        """Its name in the graph."""

    @property
    def dtype(self) -> np.dtype:
        """Its type; object for texts."""

    @property
    def shape(self) -> tuple[int, ...]:
        """All its axes, the batch first; -1 for one of any size."""

    @property
    def names(self) -> tuple[str, ...]:
        """The graph's own names of the axes; empty where it has none."""


def draws(inputs: Sequence[Input], num_rows: int) -> Iterator[Feeds]:
    """Yield inputs that a model may take, the likeliest first."""
    has_open_axes = any(-1 in each.shape[1:] for each in inputs)
    for size in AXES if has_open_axes else AXES[:1]:
        yield from draws_of_size(inputs, num_rows, {}, size)


def further_draws(inputs: Sequence[Input], taken: Feeds, number: int) -> Iterator[Feeds]:
    """Yield inputs like those that a model took, with other values and unlike sizes of open axes.

    No axis is shorter than there: a pool whose window is longer than the axis ends the process.

    Args:
        inputs: the model's.
        taken: inputs that it took, of `NUM_ROWS` rows.
        number: how many to yield at most.
    """
    names = sorted({name for each in inputs for name in each.names[1:] if name})
    least = max(
        (
            size
            for each in inputs
            for open_size, size in zip(each.shape[1:], taken[each.name].shape[1:], strict=True)
            if open_size < 0
        ),
        default=1,
    )
    generator = random.Random(1)
    for seed in range(1, number + 1):
        longer = [least, least + 1, 2 * least, 3 * least] if seed % 2 else [least]
        sizes = {name: generator.choice(longer) for name in names}
        both = draws_of_size(inputs, NUM_ROWS, sizes, generator.choice(longer), seed)
        yield from islice(both, seed % 4 == 0, 1 + (seed % 4 == 0))


def draws_of_size(
    inputs: Sequence[Input], num_rows: int, sizes: Mapping[str, int], size: int, seed: int = 0
) -> Iterator[Feeds]:
    """Yield inputs whose open axes have these sizes by name, and one size where it has none.

    Of a seed there are two: with rows of unlike values, of which those from `NUM_QUIET` on are
    loud, and with rows that are all from 0 to 1.
    """
    shapes = [_shape(each, num_rows, sizes, size) for each in inputs]
    if sum(map(math.prod, shapes)) > MAX_BYTES:
        return
    generator = random.Random(seed)  # numpy.random takes 5 ms to import
    for is_like in (False, True):
        raw = [
            np.frombuffer(generator.randbytes(math.prod(each)), np.uint8).reshape(each)
            for each in shapes
        ]
        yield {
            tensor.name: np.asarray(
                _values(each, tensor.dtype, None if is_like else seed), tensor.dtype
            )
            for tensor, each in zip(inputs, raw, strict=True)
        }


def _shape(tensor: Input, num_rows: int, sizes: Mapping[str, int], size: int) -> tuple[int, ...]:
    names = tensor.names or ("",) * len(tensor.shape)
    usual = [sizes.get(name, size) for name in names]
    usual[:1] = [num_rows] * len(usual[:1])
    return tuple(
        each if each >= 0 else open_size
        for each, open_size in zip(tensor.shape, usual, strict=True)
    )


def _values(raw: Array, dtype: np.dtype, seed: int | None) -> Array:
    """Turn random bytes into rows of unlike sizes, the loud ones last, or all from 0 to 1.

    Integers are numbers that every vocabulary has, or 0 and 1, which masks take.

    Args:
        raw: the bytes.
        dtype: the type of the values.
        seed: which loud values; None for rows that are alike.
    """
    is_like = seed is None
    if dtype.kind == "f":
        unit = (raw + 1.0) / 256
        if seed is not None and raw.ndim:
            first = seed * (NUM_ROWS - NUM_QUIET) % len(_LOUD)
            loud = (*_LOUD[first:], *_LOUD[:first])
            for number, scale in enumerate((*_QUIET, *loud)[: min(len(raw), NUM_ROWS)]):
                unit[number] = scale(raw[number])
        with np.errstate(over="ignore"):
            return unit.astype(dtype)
    if dtype.kind == "O":
        texts = ["0", "1"] if is_like else ["0", "1", "a b c", ""]
        return np.array(texts, object).take(raw % len(texts))
    if dtype.kind == "b" or is_like:
        return (raw & 1).astype(dtype)
    if dtype.itemsize > 1:
        return (raw >> 1).astype(dtype)
    return (raw.view(np.int8) if dtype == np.int8 else raw).astype(dtype)


def take(feeds: Feeds, rows: Sequence[int]) -> Feeds:
    """Return inputs of some rows."""
    return {name: array[list(rows)] for name, array in feeds.items()}


def is_near(wanted: Array, answer: Array, most: float) -> bool:
    """Return whether floats are so near one another that `relative_error` is at most `most`.

    Far cheaper than that: 6 us where it takes 23. False says nothing.

    Args:
        wanted: of any shape but ().
        answer: of the same shape.
        most: above 0.
    """
    others = tuple(range(1, wanted.ndim))
    with np.errstate(all="ignore"):  # infinity less infinity is NaN, and so is 0 times infinity
        greatest = np.abs(answer - wanted).max(axis=others, initial=0.0)
        # Half, since these numbers are rounded as the type has it.
        least = most * _FLOOR / 2 * np.abs(wanted).max(axis=others, initial=0.0)
    return bool(((greatest <= least) & (least < np.inf)).all())


def relative_error(wanted: Array, answer: Array) -> float:
    """Return the greatest difference, relative to the magnitude of the numbers of its row."""
    if answer.shape != wanted.shape:
        return math.inf
    if wanted.dtype.kind != "f":
        return 0.0 if np.array_equal(answer, wanted) else math.inf
    with np.errstate(all="ignore"):
        sizes = np.nan_to_num(np.abs(wanted), nan=0.0, posinf=0.0).astype(np.float64)
        others = tuple(range(1, sizes.ndim))
        scale = sizes + _FLOOR * sizes.max(axis=others, initial=0.0, keepdims=True)
        relative = np.abs(answer.astype(np.float64) - wanted) / scale
    same = (answer == wanted) | (np.isnan(answer) & np.isnan(wanted))
    return float(np.nan_to_num(np.where(same, 0.0, relative), nan=np.inf).max(initial=0.0))
