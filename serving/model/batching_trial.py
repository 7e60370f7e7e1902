"""Runs drawn rows alone and in batches: a second look at a proof, and inputs to measure runs with.

Samples can't show that rows are independent, only that they are not: batching_proof.py proves it.
Beside quiet rows the batches have loud ones: of 1e30, infinities, NaN.
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from serving.config import BatchingMode
from serving.errors import InvalidRequest, ModelError
from serving.model.acceptance import Run, batch_sizes, line_of
from serving.tensors import Array, Feeds, Tensor, TensorSignature

_TOLERANCES = {"FP16": 1e-2, "FP32": 1e-3, "FP64": 1e-3}
"""Largest difference of a row's numbers from those it has alone, relative to their magnitude: sums
are added in another order. Other types have none: they must be equal."""
_FLOOR = 0.01
"""Share of a row's greatest number that counts as the magnitude of small ones."""
_NUM_ROWS = 8
_SIZES = 32, 8, 1, 64, 512
"""Sizes that are tried for all axes but the first that have none in the graph."""
_DRAWS_S, _ALONE_S, _BATCHES_S = 2.0, 0.2, 0.3
"""Processor time for drawn inputs that fail or show nothing, for rows alone, and for batches."""
_SLOW_S = 1.0
"""A row that takes this long gains nothing from a batch, and has no more runs at load."""
_MAX_BYTES = 16 << 20
"""The most that a batch's inputs, or its outputs, take."""

_Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """How calls are run, and inputs with which a run succeeds."""

    tensors: TensorSignature
    line: str
    """One line that says whether rows are batched, and why not."""
    feeds: Feeds | None
    """One row, or one call's inputs, that can be run; None if no run succeeded."""


class _Dependent(Exception):
    """Rows depend on one another; the text says how it showed."""


def try_rows(
    run: Run, tensors: TensorSignature, max_batch_size: int, clock: _Clock = time.thread_time,
    *, obstacle: str | None = None, mode: BatchingMode = "auto",
) -> Finding:  # fmt: skip
    """Run drawn rows, alone and mixed in batches of several sizes.

    Args:
        run: the model.
        tensors: its inputs and outputs.
        max_batch_size: the most rows in a batch.
        clock: processor time, in seconds.
        obstacle: why it is not proved batch-invariant; None if it is.
        mode: the operator's setting; always needs no proof.
    """
    if not tensors.inputs:
        obstacle, mode = "there is no input", "auto"
    without = [each for each in tensors.inputs if each.shape[:1] != (-1,)]
    if without:
        obstacle, mode = f"input {without[0]} has no batch axis", "auto"
    is_alone = mode == "never" or (mode == "auto" and obstacle is not None)
    runnable, worst = None, None
    end_s = clock() + _DRAWS_S
    for feeds in _draws(tensors.inputs, 1 if is_alone else _NUM_ROWS):
        row, begin_s = feeds if is_alone else _take(feeds, [0]), clock()
        if begin_s > end_s:
            break
        try:
            first = run(row)
            row_s, runnable = clock() - begin_s, runnable or row
            # As many axes as outputs have in fact, where the graph says none.
            seen = (each if each.shape else replace(each, shape=(-1,) * array.ndim)
                    for each, array in zip(tensors.outputs, first, strict=True))  # fmt: skip
            tensors = replace(tensors, outputs=tuple(seen))
            if is_alone or mode == "always":
                break
            if row_s > _SLOW_S:
                raise _Dependent(f"a row takes {row_s:.1f} s")
            difference, has_shown = _compare(
                run, feeds, first, tensors.outputs, max_batch_size, clock
            )
        except (InvalidRequest, ModelError):
            continue
        except _Dependent as err:
            obstacle, is_alone = str(err), True
            break
        worst = max(worst or 0.0, difference)
        if has_shown:
            break
    line = line_of(obstacle, mode, worst)
    if is_alone:
        return Finding(tensors, line, runnable)
    # Converters of trees say 1 where the graph answers N.
    outputs = (replace(each, shape=(-1, *each.shape[1:])) for each in tensors.outputs)
    tensors = replace(tensors, outputs=tuple(outputs), is_batchable=True)
    return Finding(tensors, line, runnable)


def _draws(inputs: Sequence[Tensor], num_rows: int) -> Iterator[Feeds]:
    """Yield inputs that a model may take, the likeliest first."""
    generator = random.Random(0)  # numpy.random takes 5 ms to import
    has_open_axes = any(-1 in each.shape[1:] for each in inputs)
    for size in _SIZES if has_open_axes else _SIZES[:1]:
        shapes = [[each if each >= 0 else size if number else num_rows
                   for number, each in enumerate(tensor.shape)] for tensor in inputs]  # fmt: skip
        if sum(map(math.prod, shapes)) > _MAX_BYTES:
            continue
        for is_like in (False, True):
            raw = [np.frombuffer(generator.randbytes(math.prod(each)), np.uint8).reshape(each)
                   for each in shapes]  # fmt: skip
            yield {
                tensor.name: np.asarray(_values(each, tensor.dtype, is_like=is_like), tensor.dtype)
                for tensor, each in zip(inputs, raw, strict=True)
            }


def _values(raw: Array, dtype: np.dtype, *, is_like: bool) -> Array:
    """Turn random bytes into rows of unlike sizes, the loud ones last, or all from 0 to 1.

    Integers are numbers that every vocabulary has, or 0 and 1, which masks take.
    """
    if dtype.kind == "f":
        unit = (raw + 1.0) / 256
        if not is_like and raw.ndim:
            for number, scale in enumerate(_SCALES[: len(raw)]):
                unit[number] = scale(raw[number])
        with np.errstate(over="ignore"):
            return unit.astype(dtype)
    if dtype.kind == "O":
        texts = ["0", "1"] if is_like else ["0", "1", "a b c", ""]
        return np.array(texts, object).take(raw % len(texts))
    if dtype.kind == "b" or is_like:
        return (raw & 1).astype(dtype)
    return (
        raw.view(np.int8) if dtype == np.int8 else raw if dtype.itemsize == 1 else raw >> 1
    ).astype(dtype)


_SCALES: tuple[Callable[[Array], Any], ...] = (
    lambda raw: raw / 127.5 - 1,
    lambda raw: (raw + 1.0) / 256,
    lambda raw: raw * 1.0,
    lambda raw: np.where(raw & 1, 1, -1) * 10.0 ** (raw / 64),
    lambda raw: raw * 0.0,
    lambda raw: np.where(raw & 1, 1e30, -1e30),
    lambda raw: np.where(raw & 1, np.inf, raw / 256),
    lambda raw: np.where(raw & 1, np.nan, raw / 256),
)
"""Of one row each: from -1 to 1, from 0 to 1, from 0 to 255, of every magnitude as tables have, 0,
and the loud ones."""
_NUM_QUIET = 5
"""Rows that are compared with themselves; of the loud ones only rounding would show."""


def _compare(
    run: Run, feeds: Feeds, first: list[Array], outputs: Sequence[Tensor], max_batch_size: int,
    clock: _Clock,
) -> tuple[float, bool]:  # fmt: skip
    """Compare rows alone, of which the first has run, with rows in batches.

    Returns:
        The greatest difference, and whether each output differs from row to row: one that does not
        shows nothing.
    """
    rows, begin_s = [first], clock()
    while len(rows) < _NUM_QUIET and (len(rows) < 2 or clock() - begin_s < _ALONE_S):
        rows.append(run(_take(feeds, [len(rows)])))
    row_s = (clock() - begin_s) / (len(rows) - 1)
    alone = [_joined(*each) for each in zip(outputs, zip(*rows, strict=True), strict=True)]
    has_shown = all(((each != each[:1]) & (each == each)).any() for each in alone)  # NaN is nothing
    generator, worst = random.Random(0), 0.0
    row_bytes = max(sum(each.nbytes for each in alone) / len(rows),
                    sum(each.nbytes / len(each) for each in feeds.values()))  # fmt: skip
    for size in batch_sizes(max(2, max_batch_size), row_s, _BATCHES_S):
        if size > 2 and size * row_bytes > _MAX_BYTES:
            break
        # Others than itself are next to each row of a small batch, too; one is quiet.
        draw = generator.choices if size > _NUM_ROWS else generator.sample
        chosen = draw(range(_NUM_ROWS), k=size)
        if min(chosen) >= len(rows):
            chosen[0] = 0
        try:
            answers = run(_take(feeds, chosen))
        except (InvalidRequest, ModelError) as err:
            raise _Dependent(f"a batch of {size} rows fails") from err
        quiet = [at for at, number in enumerate(chosen) if number < len(rows)]
        for tensor, expected, answer in zip(outputs, alone, answers, strict=True):
            if answer.shape[:1] != (size,):
                raise _Dependent(f"a batch of {size} rows has output {tensor.name} "
                                 f"of shape {list(answer.shape)}")  # fmt: skip
            difference = _difference(expected[[chosen[at] for at in quiet]], answer[quiet])
            most = _TOLERANCES.get(tensor.datatype, 0.0)
            if difference > most:
                raise _Dependent(
                    f"rows depend on the batch: in one of {size}, output {tensor.name} differs by "
                    f"{difference:.1g}, at most {most:g} allowed"
                )
            worst = max(worst, difference)
    return worst, has_shown


def _joined(tensor: Tensor, rows: Sequence[Array]) -> Array:
    """Join the outputs of rows that ran alone."""
    for row in rows:
        if row.shape[:1] != (1,) or row.shape != rows[0].shape:
            raise _Dependent(f"output {tensor.name} of a row has shape {list(row.shape)}")
    return np.concatenate(rows)


def _difference(wanted: Array, answer: Array) -> float:
    """Return the greatest difference, relative to the magnitude of the numbers of its row."""
    if answer.shape != wanted.shape:
        return np.inf
    if wanted.dtype.kind != "f":
        return 0.0 if np.array_equal(answer, wanted) else np.inf
    with np.errstate(all="ignore"):
        sizes = np.nan_to_num(np.abs(wanted), nan=0.0, posinf=0.0).astype(np.float64)
        others = tuple(range(1, sizes.ndim))
        scale = sizes + _FLOOR * sizes.max(axis=others, initial=0.0, keepdims=True)
        difference = np.abs(answer.astype(np.float64) - wanted) / scale
    same = (answer == wanted) | (np.isnan(answer) & np.isnan(wanted))
    return float(np.nan_to_num(np.where(same, 0.0, difference), nan=np.inf).max(initial=0.0))


def _take(feeds: Feeds, rows: Sequence[int]) -> Feeds:
    return {name: array[list(rows)] for name, array in feeds.items()}
