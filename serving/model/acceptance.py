"""The check of a model before it serves: right in every batch, and how long runs take.

A model can answer its golden samples correctly and still be unfit: one that answers one row for any
batch, or whose rows depend on their neighbours, gives wrong answers once requests are batched.

Without golden samples drawn rows are run, alone and in batches: a second look at a proof, and
inputs to measure runs with. Samples can't show that rows are independent, only that they are not:
serving/model/proof proves it. Beside quiet rows the batches have loud ones: 1e30, infinities, NaN.
"""

import math
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import accumulate

import numpy as np

from serving.config import BatchingMode
from serving.errors import InvalidRequest, ModelError
from serving.model.samples import MAX_BYTES, NUM_QUIET, NUM_ROWS, draws, relative_error, take
from serving.tensors import Array, Feeds, Images, Probabilities, Tensor, TensorSignature

Run = Callable[[Feeds], list[Array]]

GOLDEN_TOLERANCE = 1e-3
"""Largest difference of a probability from the manifest's: processors add in different orders."""
_NEIGHBOUR_TOLERANCE = 1e-2
"""Largest difference of a row's probability from the one it has alone: noise is near no class, so
rounding has more effect than on golden samples."""
_NUM_NOISE = 16
_ALONE_S, _BATCHES_S = 1.0, 2.0
"""Processor time for the runs of one row, and for those of batches: where a run takes long, the
later samples and the larger batches are left out."""
_MIN_ALONE = 4
"""Samples that are run alone, however long that takes; so is the smallest batch."""


ENOUGH_ROWS = 128
"""The fewest rows that are worth their own run on another core: in larger runs each is hardly
cheaper."""
_ENOUGH_S = 0.0004
"""How long a run takes at least that is worth it: starting a thread, and waking a core, take some
100 µs."""
_SIZES = 1, 2, 4, 8, 16, 32, 64, ENOUGH_ROWS, 256, 512
_NUM_TIMED, _MAX_TIMED = 3, 5
_QUICK_S = 0.0002
"""The longest run of few rows on the thread that reads from all callers, who wait meanwhile: a lone
caller's call takes 0.14 ms, and took 11 ms beside a model whose rows run there for 1.2 ms each."""
_QUICK_ROW_S, _QUICK_BATCH_S = 15e-6, 0.002
"""More rows may take twice as long as that thread reads and answers as many calls, some 7 us each,
but no run more than 2 ms: 128 rows of a small network take 0.6 ms, and another thread would make
their callers wait for 0.1 ms more."""
_UNBOUNDED = (
    b"Loop", b"Scan", b"If", b"SequenceMap", b"BeamSearch", b"GreedySearch", b"Sampling",
    b"Range", b"ConstantOfShape", b"Expand", b"Tile", b"Resize", b"Upsample", b"Pad", b"OneHot",
    b"BlackmanWindow", b"HammingWindow", b"HannWindow", b"MelWeightMatrix", b"NonMaxSuppression",
)  # fmt: skip
"""Operators whose time depends on values: control flow, searches, and those that get sizes as
values. A call that counts a Loop up to 2^62 would stop all callers of all models."""
_NODES = re.compile(
    b"\x22(?:" + b"|".join(re.escape(bytes([len(name)]) + name) for name in _UNBOUNDED) + b")"
)
"""NodeProto.op_type, in the graph or in any function or subgraph."""
_TOLERANCES = {"FP16": 1e-2, "FP32": 1e-3, "FP64": 1e-3}
"""Largest difference of a row's numbers from those it has alone, relative to their magnitude: sums
are added in another order. Other types have none: they must be equal."""
_DRAWS_S, _DRAWN_ALONE_S, _DRAWN_BATCHES_S = 2.0, 0.2, 0.3
"""Processor time for drawn inputs that fail or show nothing, for rows alone, and for batches."""
_SLOW_S = 1.0
"""A row that takes this long gains nothing from a batch, and has no more runs at load."""


class Unfit(Exception):
    """The model is unfit to serve; the text completes a line that begins with its version."""


def check(
    run: Callable[[Images], Probabilities],
    golden: Images,
    expected: Probabilities,
    max_batch_size: int,
    clock: Callable[[], float] = time.thread_time,
) -> float:
    """Run golden samples and noise, alone and mixed in batches of every size.

    Where a run takes long, only as many samples and sizes as fit into some 3 s of `clock`.

    Returns:
        The largest difference of a row's probability from the one it has alone.

    Raises:
        Unfit: a run failed, or an answer is wrong.
    """
    generator = random.Random(0)  # numpy.random takes 5 ms to import
    noise = np.frombuffer(generator.randbytes(_NUM_NOISE * golden.shape[1]), np.uint8)
    probes = np.concatenate([golden, noise.reshape(_NUM_NOISE, -1)])
    begin_s = clock()
    alone = _alone(run, probes, expected.shape[1], clock)
    image_s = (clock() - begin_s) / len(alone)
    num_golden = min(len(golden), len(alone))
    difference = np.abs(alone[:num_golden] - expected[:num_golden]).max()
    if difference > GOLDEN_TOLERANCE:
        raise Unfit(
            f"answers its golden samples wrongly: a probability is off by {difference:.2g}, "
            f"at most {GOLDEN_TOLERANCE:g} expected"
        )
    worst = 0.0
    for size in batch_sizes(max_batch_size, image_s, _BATCHES_S):
        chosen = generator.choices(range(len(alone)), k=size)
        answers = _answers(run, probes[chosen], expected.shape[1])
        difference = float(np.abs(answers - alone[chosen]).max())
        worst = max(worst, difference)
        if difference > _NEIGHBOUR_TOLERANCE:
            raise Unfit(
                f"answers depending on the batch: of {size} images, a probability is off by "
                f"{difference:.2g}, at most {_NEIGHBOUR_TOLERANCE:g} expected"
            )
    return worst


def _alone(
    run: Callable[[Images], Probabilities],
    probes: Images,
    num_classes: int,
    clock: Callable[[], float],
) -> Probabilities:
    """Run images one by one, the first ones if that takes long; return their probabilities."""
    end_s = clock() + _ALONE_S
    rows: list[Probabilities] = []
    for probe in probes:
        if len(rows) >= _MIN_ALONE and clock() > end_s:
            break
        rows.append(_answers(run, probe[None], num_classes))
    return np.concatenate(rows)


def batch_sizes(max_batch_size: int, row_s: float, budget_s: float) -> Iterator[int]:
    """Yield every power of two, which a GPU runs unpadded, and one less, which is padded.

    All from 2 up if a row takes `row_s` little enough, else as many as `budget_s` allows, and the
    smallest.
    """
    full = [*(1 << power for power in range((max_batch_size - 1).bit_length())), max_batch_size]
    sizes = sorted({*full, *(size - 1 for size in full)} - {0, 1})
    for size, num_rows in zip(sizes, accumulate(sizes), strict=True):
        if size > sizes[0] and num_rows * row_s > budget_s:
            return
        yield size


def _answers(
    run: Callable[[Images], Probabilities], images: Images, num_classes: int
) -> Probabilities:
    try:
        probabilities = run(images)
    except (InvalidRequest, ModelError) as err:
        raise Unfit(f"fails on {len(images)} of its golden samples") from err
    if probabilities.shape != (len(images), num_classes):
        raise Unfit(f"answers {len(images)} images with shape {probabilities.shape}")
    if not np.isfinite(probabilities).all():
        raise Unfit(f"answers {len(images)} images with numbers that are not finite")
    return probabilities


def has_bounded_time(onnx: bytes) -> bool:
    """Return whether runs of one shape take equally long, so that one can be timed for all."""
    return _NODES.search(onnx) is None


def find_rows(
    run: Run, tensors: TensorSignature, feeds: Feeds | None, max_batch_size: int
) -> tuple[int, int]:
    """Measure how many rows are quick, and how many are worth a run on another core.

    Only where inputs and outputs have fixed sizes: else a run may take any time.

    Returns:
        The most rows of a run that is quick enough for the thread that reads from all callers, and
        the fewest that are worth a run of their own.
    """
    is_batchable = tensors.is_batchable
    both = (*tensors.inputs, *tensors.outputs)
    is_open = any(-1 in each.shape[is_batchable:] or each.datatype == "BYTES" for each in both)
    if feeds is None or is_open:
        return 0, ENOUGH_ROWS
    sizes = {*_SIZES, max_batch_size} if is_batchable else {1}
    quick, enough = 0, ENOUGH_ROWS
    for size in sorted(each for each in sizes if each <= max_batch_size):
        is_usual = size == min(ENOUGH_ROWS, max_batch_size)
        some = feeds
        if is_batchable:
            some = {name: np.resize(each, (size, *each.shape[1:])) for name, each in feeds.items()}
        most_s = min(max(_QUICK_S, size * _QUICK_ROW_S), _QUICK_BATCH_S)
        run_s = _shortest_s(partial(run, some), _NUM_TIMED if is_usual else 1, most_s)
        if run_s > most_s:
            break
        quick = size
        if is_usual:
            enough = max(ENOUGH_ROWS, int(size * _ENOUGH_S / max(run_s, 1e-9)))
    return quick, enough


def _shortest_s(run: Callable[[], object], num_runs: int, most_s: float) -> float:
    """Return the time of the shortest of some runs; of up to five, if none takes `most_s`."""
    times, first_s = [math.inf], time.thread_time()
    while len(times) <= num_runs or (min(times) > most_s and len(times) <= _MAX_TIMED):
        begin_s = time.monotonic()
        try:
            run()
        except (InvalidRequest, ModelError):  # fewer rows, which only its callers can know
            break
        times.append(time.monotonic() - begin_s)
        if time.thread_time() - first_s > 2 * most_s:  # others' work may take no processor time
            break
    return min(times)


def line_of(obstacle: str | None, mode: BatchingMode) -> str:
    """Return one line that says whether rows are batched, and why not.

    Args:
        obstacle: why they are not proved independent; None if they are.
        mode: the operator's setting.
    """
    if mode == "never":
        return "batching off: the operator's setting"
    if obstacle is None:
        return "batching on: row independence proved"
    if mode == "always":
        return f"batching on by the operator's setting, not proved: {obstacle}"
    return f"batching off: {obstacle}"


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
