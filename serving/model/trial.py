"""The trial of a model without golden samples: drawn rows, alone and in batches."""

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from serving.config import BatchingMode
from serving.errors import InvalidRequest, ModelError
from serving.model.timing import Run, batch_sizes
from serving.model.verdicts import line_of
from serving.proof.drawn_inputs import MAX_BYTES, NUM_QUIET, NUM_ROWS, draws, relative_error, take
from serving.tensors import Array, Feeds, Tensor, TensorSignature

_TOLERANCES = {"FP16": 1e-2, "FP32": 1e-3, "FP64": 1e-3}
"""Largest difference of a row's numbers from those it has alone, relative to their magnitude: sums
are added in another order. Other types have none: they must be equal."""
_DRAWS_S, _DRAWN_ALONE_S, _DRAWN_BATCHES_S = 2.0, 0.2, 0.3
"""Processor time for drawn inputs that fail or show nothing, for rows alone, and for batches."""
_SLOW_S = 1.0
"""A row that takes this long gains nothing from a batch, and has no more runs at load."""
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
    run: Run,
    tensors: TensorSignature,
    max_batch_size: int,
    clock: _Clock = time.thread_time,
    *,
    obstacle: str | None = None,
    mode: BatchingMode = "auto",
) -> Finding:
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
    runnable = None
    end_s = clock() + _DRAWS_S
    for feeds in draws(tensors.inputs, 1 if is_alone else NUM_ROWS):
        row, begin_s = feeds if is_alone else take(feeds, [0]), clock()
        if begin_s > end_s:
            break
        try:
            first = run(row)
            row_s, runnable = clock() - begin_s, runnable or row
            # As many axes as outputs have in fact, where the graph says none.
            seen = (
                each if each.shape else replace(each, shape=(-1,) * array.ndim)
                for each, array in zip(tensors.outputs, first, strict=True)
            )
            tensors = replace(tensors, outputs=tuple(seen))
            if is_alone or mode == "always":
                break
            if row_s > _SLOW_S:
                raise _Dependent(f"a row takes {row_s:.1f} s")
            has_shown = _compare(run, feeds, first, tensors.outputs, max_batch_size, clock)
        except (InvalidRequest, ModelError):
            continue
        except _Dependent as err:
            obstacle, is_alone = str(err), True
            break
        if has_shown:
            break
    line = line_of(obstacle, mode)
    if is_alone:
        return Finding(tensors, line, runnable)
    # Converters of trees say 1 where the graph answers N.
    outputs = (replace(each, shape=(-1, *each.shape[1:])) for each in tensors.outputs)
    tensors = replace(tensors, outputs=tuple(outputs), is_batchable=True)
    return Finding(tensors, line, runnable)


def _compare(
    run: Run,
    feeds: Feeds,
    first: list[Array],
    outputs: Sequence[Tensor],
    max_batch_size: int,
    clock: _Clock,
) -> bool:
    """Compare rows alone, of which the first has run, with rows in batches.

    Returns:
        Whether each output differs from row to row: one that does not shows nothing.
    """
    rows, begin_s = [first], clock()
    while len(rows) < NUM_QUIET and (len(rows) < 2 or clock() - begin_s < _DRAWN_ALONE_S):
        rows.append(run(take(feeds, [len(rows)])))
    row_s = (clock() - begin_s) / (len(rows) - 1)
    alone = [_joined(*each) for each in zip(outputs, zip(*rows, strict=True), strict=True)]
    has_shown = all(((each != each[:1]) & (each == each)).any() for each in alone)  # NaN is nothing
    generator = random.Random(0)
    row_bytes = max(
        sum(each.nbytes for each in alone) / len(rows),
        sum(each.nbytes / len(each) for each in feeds.values()),
    )
    for size in batch_sizes(max(2, max_batch_size), row_s, _DRAWN_BATCHES_S):
        if size > 2 and size * row_bytes > MAX_BYTES:
            break
        # Others than itself are next to each row of a small batch, too; one is quiet.
        draw = generator.choices if size > NUM_ROWS else generator.sample
        chosen = draw(range(NUM_ROWS), k=size)
        if min(chosen) >= len(rows):
            chosen[0] = 0
        try:
            answers = run(take(feeds, chosen))
        except (InvalidRequest, ModelError) as err:
            raise _Dependent(f"a batch of {size} rows fails") from err
        quiet = [at for at, number in enumerate(chosen) if number < len(rows)]
        for tensor, expected, answer in zip(outputs, alone, answers, strict=True):
            if answer.shape[:1] != (size,):
                raise _Dependent(
                    f"a batch of {size} rows has output {tensor.name} of shape {list(answer.shape)}"
                )
            found = relative_error(expected[[chosen[at] for at in quiet]], answer[quiet])
            most = _TOLERANCES.get(tensor.datatype, 0.0)
            if found > most:
                raise _Dependent(
                    f"rows depend on the batch: in one of {size}, output {tensor.name} differs by "
                    f"{found:.1g}, at most {most:g} allowed"
                )
    return has_shown


def _joined(tensor: Tensor, rows: Sequence[Array]) -> Array:
    for row in rows:
        if row.shape[:1] != (1,) or row.shape != rows[0].shape:
            raise _Dependent(f"output {tensor.name} of a row has shape {list(row.shape)}")
    return np.concatenate(rows)
