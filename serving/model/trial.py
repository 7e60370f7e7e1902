"""The trial of a model without golden samples: drawn rows, alone and in batches.

The session that serves is compared, with all that optimizations and the device make of the graph:
64 draws, or as many as 2 s of processor time allow, at least four. Their loud rows (huge, infinite,
NaN) are beside quiet ones, and open axes are of unlike sizes. What was found is kept beside the
verdicts, so that a further start does not compare again.
"""

import hashlib
import json
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from serving.config import BatchingMode, Device
from serving.errors import InvalidRequest, ModelError
from serving.model.onnx_runtime import SessionSettings
from serving.model.timing import Run, batch_sizes
from serving.model.verdicts import Verdict, line_of, sources_version
from serving.proof.drawn_inputs import (
    MAX_BYTES,
    NUM_QUIET,
    NUM_ROWS,
    draws,
    further_draws,
    relative_error,
    take,
)
from serving.system.usage import processor
from serving.tensors import Array, Feeds, Tensor, TensorSignature

_TOLERANCES = {"FP16": 1e-2, "FP32": 1e-3, "FP64": 1e-3}
"""Largest difference of a row's numbers from those it has alone, relative to their magnitude: sums
are added in another order. Other types have none: they must be equal."""
_DRAWS_S, _DRAWN_ALONE_S, _DRAWN_BATCHES_S = 2.0, 0.2, 0.3
"""Processor time for drawn inputs that fail or show nothing, for rows alone, and for batches."""
_NUM_DRAWS, _LEAST_DRAWS = 64, 4
_FURTHER_S, _MOST_S = 2.0, 6.0
"""Processor time for the draws after the first: from `_LEAST_DRAWS` on, and for all."""
_SLOW_S = 1.0
"""A row that takes this long gains nothing from a batch, and has no more runs at load."""
_DEAR_S = 0.02
"""Of a row that takes this long, further draws are compared in batches of two."""
_SOURCES = "model/trial.py", "model/onnx_runtime.py", "proof/drawn_inputs.py"
_Clock = Callable[[], float]


@dataclass(frozen=True, slots=True, eq=False)
class Finding:
    """How calls are run, and inputs with which a run succeeds."""

    tensors: TensorSignature
    line: str
    """One line that says whether rows are batched, and why not."""
    feeds: Feeds | None
    """One row, or one call's inputs, that can be run; None if no run succeeded."""
    verdict: Verdict | None = None
    """Whether batches agree with lone rows; None if nothing was compared."""


def key_of(verdict_key: str, settings: SessionSettings, device: Device, max_batch_size: int) -> str:
    """Return the name of a trial's verdict, by all that it rests on.

    Args:
        verdict_key: the name of the verdict on the graph.
        settings: those of the session.
        device: the one that it is on.
        max_batch_size: the most rows in a batch.
    """
    facts = repr(settings), device, max_batch_size, sources_version(*_SOURCES), processor()
    return hashlib.sha256(json.dumps([verdict_key, *facts]).encode()).hexdigest()


class _Dependent(Exception):
    """Rows depend on one another; the text says how it showed."""


class _Slow(_Dependent):
    """A batch would gain nothing, this time."""


def try_rows(
    run: Run,
    tensors: TensorSignature,
    max_batch_size: int,
    clock: _Clock = time.thread_time,
    *,
    obstacle: str | None = None,
    mode: BatchingMode = "auto",
    known: Verdict | None = None,
) -> Finding:
    """Run drawn rows, alone and mixed in batches of several sizes.

    Args:
        run: the model.
        tensors: its inputs and outputs.
        max_batch_size: the most rows in a batch.
        clock: processor time, in seconds.
        obstacle: why it is not proved batch-invariant; None if it is.
        mode: the operator's setting; always needs no proof.
        known: what an earlier trial found; then rows are not compared again.
    """
    if obstacle is None and known is not None:
        obstacle = known.obstacle
    if not tensors.inputs:
        obstacle, mode = "there is no input", "auto"
    without = [each for each in tensors.inputs if each.shape[:1] != (-1,)]
    if without:
        obstacle, mode = f"input {without[0]} has no batch axis", "auto"
    is_alone = mode == "never" or (mode == "auto" and obstacle is not None)
    runnable = compared = failure = verdict = None
    begin_s = clock()
    end_s = begin_s + _DRAWS_S
    for feeds in draws(tensors.inputs, 1 if is_alone else NUM_ROWS):
        row, row_begin_s = feeds if is_alone else take(feeds, [0]), clock()
        if row_begin_s > end_s:
            break
        try:
            first = run(row)
            row_s, runnable = clock() - row_begin_s, runnable or row
            # As many axes as outputs have in fact, where the graph says none.
            seen = (
                each if each.shape else replace(each, shape=(-1,) * array.ndim)
                for each, array in zip(tensors.outputs, first, strict=True)
            )
            tensors = replace(tensors, outputs=tuple(seen))
            if is_alone or mode == "always" or known is not None:
                break
            if row_s > _SLOW_S:
                raise _Slow(f"a row takes {row_s:.1f} s")
            has_shown, row_bytes = _compare(
                run, feeds, first, tensors.outputs, max_batch_size, clock
            )
            compared = _Compared(feeds, row_s, row_bytes, begin_s)
        except (InvalidRequest, ModelError):
            continue
        except _Dependent as err:
            failure = err
            break
        if has_shown:
            break
    if compared is not None and failure is None:
        try:
            _compare_further(run, tensors, compared, clock)
        except _Dependent as err:
            failure = err
    if failure is not None:
        obstacle, is_alone = str(failure), True
    if compared is not None or failure is not None:
        verdict = None if isinstance(failure, _Slow) else Verdict(obstacle)
    line = line_of(obstacle, mode)
    if is_alone:
        return Finding(tensors, line, runnable, verdict)
    # Converters of trees say 1 where the graph answers N.
    outputs = (replace(each, shape=(-1, *each.shape[1:])) for each in tensors.outputs)
    tensors = replace(tensors, outputs=tuple(outputs), is_batchable=True)
    return Finding(tensors, line, runnable, verdict)


class _Compared(NamedTuple):
    """The first draw that was compared."""

    feeds: Feeds
    row_s: float
    """Processor time of a row."""
    row_bytes: float
    """What the inputs or the outputs of a row take."""
    begin_s: float
    """When the trial began."""


def _compare_further(run: Run, tensors: TensorSignature, first: _Compared, clock: _Clock) -> None:
    """Compare draws after the first: quiet rows alone, and in a batch beside loud ones."""
    begin_s, num_draws, generator = clock(), 1, random.Random(1)
    is_dear = first.row_s > _DEAR_S or NUM_ROWS * first.row_bytes > MAX_BYTES
    for feeds in further_draws(tensors.inputs, first.feeds, _NUM_DRAWS - 1):
        is_enough = num_draws >= _LEAST_DRAWS and clock() - begin_s > _FURTHER_S
        if is_enough or clock() - first.begin_s > _MOST_S:
            break
        rows = generator.sample(range(NUM_ROWS), 2 if is_dear else generator.randint(2, NUM_ROWS))
        rows[:2] = generator.randrange(NUM_QUIET), generator.randrange(NUM_QUIET, NUM_ROWS)
        generator.shuffle(rows)
        num_draws += _agrees(run, tensors.outputs, feeds, rows)


def _agrees(run: Run, outputs: Sequence[Tensor], feeds: Feeds, rows: Sequence[int]) -> bool:
    """Compare two quiet rows of a batch with themselves alone; return whether they could be run."""
    quiet = [at for at, row in enumerate(rows) if row < NUM_QUIET][:2]
    try:
        alone = [run(take(feeds, [rows[at]])) for at in quiet]
    except (InvalidRequest, ModelError):  # the model does not take these sizes
        return False
    try:
        answers = run(take(feeds, rows))
    except (InvalidRequest, ModelError) as err:
        for row in rows:
            try:
                run(take(feeds, [row]))
            except (InvalidRequest, ModelError):  # nor this row
                return False
        raise _Dependent(f"a batch of {len(rows)} rows fails") from err
    expected = [_joined(*each) for each in zip(outputs, zip(*alone, strict=True), strict=True)]
    _require_equal(outputs, expected, answers, len(rows), quiet)
    return True


def _require_equal(
    outputs: Sequence[Tensor],
    expected: Sequence[Array],
    answers: Sequence[Array],
    size: int,
    places: Sequence[int],
) -> None:
    """Raise _Dependent unless rows of a batch are as expected.

    Args:
        outputs: the model's.
        expected: for each output, the rows alone.
        answers: for each output, the batch.
        size: the number of rows in the batch.
        places: those of the rows in the batch.
    """
    for tensor, wanted, answer in zip(outputs, expected, answers, strict=True):
        if answer.shape[:1] != (size,):
            raise _Dependent(
                f"a batch of {size} rows has output {tensor.name} of shape {list(answer.shape)}"
            )
        found = relative_error(wanted, answer[list(places)])
        most = _TOLERANCES.get(tensor.datatype, 0.0)
        if found > most:
            raise _Dependent(
                f"rows depend on the batch: in one of {size}, output {tensor.name} differs by "
                f"{found:.1g}, at most {most:g} allowed"
            )


def _compare(
    run: Run,
    feeds: Feeds,
    first: list[Array],
    outputs: Sequence[Tensor],
    max_batch_size: int,
    clock: _Clock,
) -> tuple[bool, float]:
    """Compare rows alone, of which the first has run, with rows in batches.

    Returns:
        Whether each output differs from row to row: one that does not shows nothing; and what the
        inputs or the outputs of a row take, in bytes.
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
        numbers = [chosen[at] for at in quiet]
        _require_equal(outputs, [each[numbers] for each in alone], answers, size, quiet)
    return has_shown, row_bytes


def _joined(tensor: Tensor, rows: Sequence[Array]) -> Array:
    for row in rows:
        if row.shape[:1] != (1,) or row.shape != rows[0].shape:
            raise _Dependent(f"output {tensor.name} of a row has shape {list(row.shape)}")
    return np.concatenate(rows)
