"""How long a model's runs take: which are quick, and which are worth another core."""

import math
import time
from typing import Protocol

import numpy as np

from serving.errors import ModelError
from serving.tensors import Array, Feeds, TensorSignature

ENOUGH_ROWS = 128
"""The fewest rows that are worth their own run on another core: in larger runs each is hardly
cheaper."""
_ENOUGH_S = 0.0004
"""How long a run takes at least that is worth it: starting a thread, and waking a core, take some
100 µs."""
_NUM_TIMED, _MAX_TIMED = 3, 5
_QUICK_S = 0.002
"""The longest run on the thread that reads from all callers."""


class Timed(Protocol):
    """What is timed: a loaded model."""

    @property
    def tensors(self) -> TensorSignature:
        """What it takes and answers."""

    def run(self, feeds: Feeds) -> list[Array]:
        """Run it."""


def find_rows(model: Timed, feeds: Feeds | None, max_batch_size: int) -> tuple[int, int]:
    """Measure how many rows are quick, and how many are worth a run on another core.

    Only where inputs and outputs have fixed sizes: else a run may take any time.

    Returns:
        The most rows of a quick run, and the fewest that are worth a run of their own.
    """
    is_batchable = model.tensors.is_batchable
    both = (*model.tensors.inputs, *model.tensors.outputs)
    if feeds is None or any(-1 in each.shape[is_batchable:] for each in both):
        return 0, ENOUGH_ROWS
    sizes = {1, 32, ENOUGH_ROWS, 256, 512, max_batch_size} if is_batchable else {1}
    quick, enough = 0, ENOUGH_ROWS
    for size in sorted(each for each in sizes if each <= max_batch_size):
        is_usual = size == min(ENOUGH_ROWS, max_batch_size)
        run_s = _shortest_s(model, feeds, size, _NUM_TIMED if is_usual else 1)
        if run_s > _QUICK_S:
            break
        quick = size
        if is_usual:
            enough = max(ENOUGH_ROWS, int(size * _ENOUGH_S / max(run_s, 1e-9)))
    return quick, enough


def _shortest_s(model: Timed, feeds: Feeds, size: int, num_runs: int) -> float:
    """Return the time of the shortest of some runs; of up to five, if none is quick."""
    if model.tensors.is_batchable:
        feeds = {name: np.resize(rows, (size, *rows.shape[1:])) for name, rows in feeds.items()}
    times, first_s = [math.inf], time.thread_time()
    while len(times) <= num_runs or (min(times) > _QUICK_S and len(times) <= _MAX_TIMED):
        begin_s = time.monotonic()
        try:
            model.run(feeds)
        except ModelError:  # it takes fewer rows, which only its callers can know
            break
        times.append(time.monotonic() - begin_s)
        if time.thread_time() - first_s > 2 * _QUICK_S:  # others' work may take no processor time
            break
    return min(times)
