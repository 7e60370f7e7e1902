"""Whether a model's runs should keep their memory: counted in page faults, not guessed.

Without an arena ONNX Runtime takes the memory of intermediate tensors from malloc, and glibc maps
large blocks for each run and unmaps them after it: each of their pages is then a fault, some 2 us
with the zeroing. Eight pictures through MobileNetV2 made 30,000 faults a run and took 140 ms of
processor time; with an arena none, and 65 ms. A network of small tensors makes no fault either way,
and is 3 % faster without an arena.
"""

import time
from collections.abc import Callable, Iterator

import numpy as np

from serving.errors import InvalidRequest, ModelError
from serving.system.libc import without_free_blocks
from serving.tensors import Array, Feeds, TensorSignature

_SIZES = 2, 8, 32
"""Rows of the runs that are looked at, where rows can be batched; a larger one only where the
smaller ones are quick, since runs of ResNet50 take 75 ms a row. 32 rows of a transformer of 64
words are mapped and unmapped, 8 are not: 1.6 and 1.1 ms a row."""
_QUICK_S = 0.05
_MANY_FAULTS = 512
"""Faults of a run from which it keeps its memory: 2 MB, some 1 ms."""


def remaps_memory(
    run: Callable[[Feeds], list[Array]],
    tensors: TensorSignature,
    feeds: Feeds | None,
    max_batch_size: int,
) -> bool:
    """Return whether a repeated run has many page faults.

    Args:
        run: runs the model, without an arena.
        tensors: its inputs and outputs.
        feeds: inputs with which a run succeeds; None if there are none.
        max_batch_size: the most rows of a run.

    Returns:
        False also where the system does not count a thread's faults, as outside of Linux.
    """
    if feeds is None or _num_faults() is None:
        return False
    with without_free_blocks():  # else tensors may get what the load has freed, without a fault
        return _has_many_faults(run, _batches(tensors, feeds, max_batch_size))


def _has_many_faults(run: Callable[[Feeds], list[Array]], batches: Iterator[Feeds]) -> bool:
    begin_s = time.thread_time()
    for given in batches:
        try:
            run(given)  # the heap grows to what it keeps
            before = _num_faults() or 0
            run(given)
        except (InvalidRequest, ModelError):  # rows that only its callers can know
            return False
        if (_num_faults() or 0) - before >= _MANY_FAULTS:
            return True
        if time.thread_time() - begin_s > _QUICK_S:
            return False
    return False


def _batches(tensors: TensorSignature, feeds: Feeds, max_batch_size: int) -> Iterator[Feeds]:
    """Yield the inputs of the runs, few rows first."""
    if not tensors.is_batchable:
        yield feeds
        return
    for size in sorted({min(each, max_batch_size) for each in _SIZES}):
        yield {name: np.resize(each, (size, *each.shape[1:])) for name, each in feeds.items()}


def _num_faults() -> int | None:
    """Return the page faults of this thread that needed no disk; None where nobody counts them."""
    try:
        from resource import RUSAGE_THREAD, getrusage
    except ImportError:
        return None
    return getrusage(RUSAGE_THREAD).ru_minflt
