"""How long runs take: the rows that run where calls are read, and those worth another core."""

import math
import re
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import accumulate

import numpy as np

from serving.errors import InvalidRequest, ModelError
from serving.tensors import Array, Feeds, TensorSignature

Run = Callable[[Feeds], list[Array]]

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
