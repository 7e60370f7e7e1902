"""A net below the proof: some calls of a batch run once more, alone, before they are answered.

A version's rows share a batch because its graph was proved to keep them apart. Should a rule of the
proof be wrong, answers would depend on other callers, and nobody would notice. So now and then one
call of a shared run is drawn: the others are answered, it runs again by itself, and the two answers
are compared. Where that is quick, it is done first, since all of a turn's answers leave together.

    calls that have shared a run    one is drawn of    and their time is at most
    the first 10,000                50                 2 % of all runs
    later ones                      1,000              1 %
    10,000 behind a difference      10                 10 %

The caller of a call that differs gets the answer of the run alone. After differences in three
batches the version runs each call alone from then on. Only calls are drawn that fit one run and
whose deadline leaves time for another one.

Rounding is none of a rule's faults: sums are added in another order where there are more rows, and
a row whose terms cancel out shows nothing else. A caller of such rows would end the batches of
all. So a difference counts only if the others made it, or if the answer is a steady one: inputs
that are changed by rounding, and copies of the call in the others' places, show that.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from random import Random
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from serving.batching.run import Group, Result, Run
from serving.errors import ServingError
from serving.proof.drawn_inputs import is_near, relative_error
from serving.tensors import Array, Feeds, Tensor

FIRST_CALLS = 10_000
"""Calls that are drawn from more often: those of a new version, and those behind a difference."""
FIRST_EVERY, LATER_EVERY, SUSPECT_EVERY = 50, 1_000, 10
FIRST_SHARE, LATER_SHARE, SUSPECT_SHARE = 0.02, 0.01, 0.1
"""The most time for drawn calls, as a share of that of all runs: where a row takes as long
as a batch of 64, one call in 1,000 would be a run in 16."""
FREE_S = 0.05
"""Seconds that they may take besides."""
MOST_BATCHES = 3
"""Batches with a difference after which each call runs alone."""
TOLERANCES: Mapping[int, float] = MappingProxyType({2: 1e-2, 4: 1e-4, 8: 1e-6})
"""The largest difference of a float from itself alone, relative to the magnitude of its row, by its
bytes: sums are added in another order. Other types have none. So has the proof's check by a run."""
_NUDGE = 8
"""Units in the last place by which inputs are changed: of sums, rounding makes as much."""


class Closeness(NamedTuple):
    """How far apart two answers to one call may be."""

    relative: Mapping[int, float] = TOLERANCES
    """By the bytes of a float: relative to the magnitude of its row."""
    step: float = 0.0
    """Or, of graphs whose activations are quantised, one step of an output; 0 for others."""

    def difference(self, tensor: Tensor, alone: Array, shared: Array) -> str | None:
        """Return how an output of a shared run differs from that of a run alone, if it does."""
        if alone.shape != shared.shape:
            return f"{tensor.name} has shape {list(shared.shape)}, alone {list(alone.shape)}"
        is_float = alone.dtype.kind == "f"
        most = self.relative.get(alone.dtype.itemsize, 0.0) if is_float else 0.0
        if (most and is_near(alone, shared, most)) or relative_error(alone, shared) <= most:
            return None
        step = self.step * (1 + TOLERANCES[4])
        if is_float and step and np.abs(alone - shared).max(initial=0.0) <= step:
            return None
        if not is_float:
            return f"{tensor.name} differs"
        return f"{tensor.name} differs by {relative_error(alone, shared):.2g}"


class Drawn(NamedTuple):
    """A call that is to run once more, by itself."""

    call: Group
    result: Result
    """That of the run that it has shared."""
    at: int
    """Its first row in that run."""
    groups: list[Group]
    """All calls of the run, in the order of their rows; one is `call`."""
    alone: Result | ServingError | None = None
    """The outcome of its run alone, if its caller gets that."""


class Compared(NamedTuple):
    """A call's answer among others beside that alone."""

    text: str | None
    """How they differ; None if they don't, or by rounding."""
    seconds: float
    """What it took to find out."""


class SpotChecks:
    """Draws calls of one version and compares their answers; of the owner's thread."""

    def __init__(
        self,
        random: Random,
        outputs: Sequence[Tensor],
        closeness: Closeness,
        most_rows: int,
    ) -> None:
        """Prepare.

        Args:
            random: draws the calls.
            outputs: the model's.
            closeness: how far apart answers may be.
            most_rows: of one run.
        """
        self._random, self._outputs, self._closeness = random, outputs, closeness
        self._most_rows = most_rows
        self._every, self._num_often = FIRST_EVERY, FIRST_CALLS
        """One call of this number is drawn, and for how many calls that holds; then LATER_EVERY."""
        self._num_found = 0
        self._shared_s = self._alone_s = 0.0
        """Seconds of shared runs, and for drawn calls: their runs and comparisons."""
        self._until_next = self._gap()
        """Calls up to the next one that is drawn, and that one."""

    def _gap(self) -> int:
        """Draw the number of calls up to the next one: each call is as likely as all others."""
        share = 1.0 / (self._every if self._num_often > 0 else LATER_EVERY)
        return 1 + int(math.log(1.0 - self._random.random()) / math.log(1.0 - share))

    @property
    def _has_time(self) -> bool:
        """Whether another drawn call is within their share of the time."""
        share = LATER_SHARE
        if self._num_often > 0:
            share = FIRST_SHARE if self._every == FIRST_EVERY else SUSPECT_SHARE
        return self._alone_s <= FREE_S + share * self._shared_s

    def draw(self, groups: list[Group], result: Result, now_s: float) -> Drawn | None:
        """Count the calls of a run; return the one that is to run once more, if it is time.

        Args:
            groups: the calls, in the order of their rows.
            result: of their run.
            now_s: monotonic seconds.
        """
        number = 0
        for group in groups:
            number += len(group.streams)
        if number < 2:
            return None
        self._shared_s += result.finished_s - result.started_s
        self._until_next -= number
        if self._until_next > 0:
            self._num_often -= number
            return None
        place = number - 1 + self._until_next
        self._num_often -= number
        self._until_next = self._gap()
        return self._cut_out(groups, result, max(0, place), now_s)

    def _cut_out(
        self, groups: list[Group], result: Result, place: int, now_s: float
    ) -> Drawn | None:
        """Return the call at a place among those of a run, unless it can't run once more."""
        index = at = 0
        while place >= len(groups[index].streams):
            place -= len(groups[index].streams)
            at += groups[index].num_rows
            index += 1
        group = groups[index]
        call = group.cut(place, place + 1)
        run_s = result.finished_s - result.started_s
        is_large = call.num_rows > self._most_rows
        if is_large or call.deadline_s - now_s < 2 * run_s or not self._has_time:
            return None
        around = [group.cut(0, place), call, group.cut(place + 1, len(group.streams))]
        pieces = [each for each in around if each.streams]
        pieces = [*groups[:index], *pieces, *groups[index + 1 :]]
        return Drawn(call, result, at + place * call.num_rows, pieces)

    def compare(
        self,
        drawn: Drawn,
        alone: Result | ServingError,
        feeds: Callable[[], Feeds],
        run: Run,
        clock: Callable[[], float],
    ) -> Compared:
        """Compare the answers to a call; from any thread, such as the one that has run it alone.

        Args:
            drawn: the call, with its answer among others.
            alone: its answer alone, or why there is none.
            feeds: returns its inputs.
            run: the model.
            clock: monotonic, in seconds.
        """
        begin_s = clock()
        text = self._difference(drawn, alone)
        if text is not None and isinstance(alone, Result):
            with suppress(Exception):  # it was ended, or takes no such values: nothing excuses it
                text = None if self._is_rounding(drawn, alone.outputs, feeds(), run) else text
        return Compared(text, clock() - begin_s)

    def is_close(
        self,
        alone: Result | ServingError,
        compared: Compared,
        note: Callable[[str, int], None],
    ) -> bool:
        """Return whether a call has the same answer alone, and count the time and the difference.

        Args:
            alone: its answer alone, or why there is none.
            compared: what `compare` has found.
            note: called for a difference, with a text on it and how many there are now.
        """
        self._alone_s += compared.seconds  # of a small model longer than the run
        if isinstance(alone, Result):
            self._alone_s += alone.finished_s - alone.started_s
        if compared.text is None:
            return True
        self._num_found += 1
        self._every, self._num_often = SUSPECT_EVERY, FIRST_CALLS
        self._until_next = min(self._until_next, self._gap())
        note(compared.text, self._num_found)
        return False

    def _is_rounding(self, drawn: Drawn, alone: Sequence[Array], feeds: Feeds, run: Run) -> bool:
        shared = drawn.result.cut(drawn.at, drawn.call.num_rows)
        if not (_has_overflown(alone, shared) or _may_overflow(feeds)):
            changed = nudged(feeds)
            if changed is None or self._text(alone, run(changed)) is None:
                return False
        size, at = drawn.result.num_rows, drawn.at
        places = np.arange(-at, size - at)
        among = run({name: each[places % len(each)] for name, each in feeds.items()})
        return self._text([each[at : at + drawn.call.num_rows] for each in among], shared) is None

    def _difference(self, drawn: Drawn, alone: Result | ServingError) -> str | None:
        if isinstance(alone, ServingError):
            return f"alone it ends with {type(alone).__name__}"
        return self._text(alone.outputs, drawn.result.cut(drawn.at, drawn.call.num_rows))

    def _text(self, alone: Sequence[Array], shared: Sequence[Array]) -> str | None:
        """Return how a call's answer among others differs from that alone, if it does."""
        texts, are_scores_close, is_certain = [], False, False
        for tensor, expected, found in zip(self._outputs, alone, shared, strict=True):
            text = self._closeness.difference(tensor, expected, found)
            if text is not None:
                texts.append(text)
                is_certain |= expected.dtype.kind == "f" or expected.shape != found.shape
            elif expected.dtype.kind == "f":
                are_scores_close = True
        # A class may change where two scores are as good as equal: a near tie is no difference.
        return "; ".join(texts) if texts and (is_certain or not are_scores_close) else None


def nudged(feeds: Feeds) -> Feeds | None:
    """Return inputs whose floats are changed in their last places, up and down; None without any.

    Which way is the same each time, and neighbours along any axis go either way.
    """
    found = dict(feeds)
    for name, array in feeds.items():
        if array.dtype.kind == "f":
            numbers = np.arange(array.size, dtype=np.uint32) * np.uint32(2_654_435_761)
            signs = (numbers >> np.uint32(15) & np.uint32(1)).astype(array.dtype) * 2 - 1
            share = signs.reshape(array.shape) * (_NUDGE * np.finfo(array.dtype).eps)
            with np.errstate(all="ignore"):
                found[name] = array + array * share.astype(array.dtype)
    return found if any(array.dtype.kind == "f" for array in feeds.values()) else None


def _has_overflown(alone: Sequence[Array], shared: Sequence[Array]) -> bool:
    """Return whether a number of one answer is finite that is not so in the other."""
    return any(
        first.dtype.kind == "f"
        and first.shape == second.shape
        and not np.array_equal(np.isfinite(first), np.isfinite(second))
        for first, second in zip(alone, shared, strict=True)
    )


def _may_overflow(feeds: Feeds) -> bool:
    """Return whether a float of the inputs is so large that its square is none, or is none."""
    floats = [array for array in feeds.values() if array.dtype.kind == "f"]
    return any(not (np.abs(each) < np.sqrt(np.finfo(each.dtype).max)).all() for each in floats)
