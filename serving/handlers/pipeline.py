"""The entry of a version with a handler: its calls are joined, and go through stages.

    calls ──▶ entry ──▶ [Decode] ──▶ [Method] ──▶ [Run] ──▶ [Method] ──▶ Answer ──▶ callers
              queue      pool        processes    batcher   processes    loop

A call, or several of a handler whose rows are independent, is taken once a process is free for its
first method; where another stage comes first, ahead of that. What has begun is done first.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from serving.batching.batcher import Batcher
from serving.batching.entry import Entry
from serving.batching.queue import Queue
from serving.batching.run import (
    Group,
    Owner,
    Result,
    answers_in_parts,
    arrays_of,
    open_calls,
)
from serving.config import BatchingConfig
from serving.errors import InvalidRequest, ModelError, ServingError
from serving.handlers.joined import Attempt, Joined, Stage
from serving.handlers.nested import Find
from serving.handlers.process_set import Launcher, Process
from serving.handlers.runners import ProcessRunners
from serving.handlers.signature import (
    METADATA,
    PARAMETERS,
    POSTPROCESS,
    PREDICT,
    PREPROCESS,
    HandlerSignature,
)
from serving.handlers.stages import AnswerStage, DecodeStage, MethodStage, PictureDecoder, RunStage
from serving.telemetry.metrics import HandlerUsage, Metrics
from serving.tensors import Array, TensorSignature

_OPEN = 32
"""Joined calls behind the entry, for each process."""
_AHEAD = 2
"""Those of pictures that no process works on yet, for each process: their pixels are large."""
_SWEEP_S = 0.1
"""How often calls that wait or run are looked at."""
_PACE_S = 0.005
"""The least time over which the pace is measured."""
_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})

_Member = tuple[Group, Sequence[Array]]
"""A call or several, and their inputs."""


class HandlerRuntime(NamedTuple):
    """What a version with a handler runs on."""

    signature: HandlerSignature
    network: Batcher | None
    """The model between its methods; it does not count calls."""
    launcher: Launcher
    take_first: Callable[[], Sequence[Process]]
    """Returns the processes that started with the loading of the version, once."""
    num_processes: int
    find: Find
    decoder: Callable[[], PictureDecoder]
    on_block: Callable[[], object]
    """Called when it may have become able to serve, or unable."""


class Pipeline(Entry):
    """Takes the calls of one version with a handler, and has them go through its stages."""

    def __init__(
        self,
        label: tuple[str, str],
        tensors: TensorSignature,
        config: BatchingConfig,
        metrics: Metrics,
        runtime: HandlerRuntime,
    ) -> None:
        """Prepare; `attach` comes before the first call.

        Args:
            label: the model's name and version.
            tensors: the inputs and outputs for callers.
            config: sizes and limits.
            metrics: counts.
            runtime: what else it needs.
        """
        super().__init__(label, tensors, config, metrics, (Queue(config.queue_capacity),))
        signature, self._network = runtime.signature, runtime.network
        self._runtime, self._signature = runtime, signature
        self._queue.run_rows = config.max_batch_size if signature.batching else 1
        number, find = runtime.num_processes, runtime.find
        self._runners = ProcessRunners(
            label, runtime.launcher, number, config, metrics, find, self, signature
        )
        has_many = signature.in_parts or signature.is_async
        self._most_open = _OPEN + (signature.max_concurrency if has_many else 0)
        self.stages: Sequence[Stage] = ()
        self._decode: DecodeStage | None = None
        self._is_ahead = signature.has_pictures or signature.methods[0] == POSTPROCESS
        """Whether calls begin without a process."""
        self._open: dict[int, Joined] = {}
        """Those that are in a stage, by number."""
        self._numbers = itertools.count(1)
        self._next_sweep_s = 0.0
        self._num_done, self._pace_since_s = 0, 0.0
        """Rows that processes were through with since then, while there were others."""
        self._option_names = [each for each in (PARAMETERS, METADATA) if each in signature.options]
        self._may_stay = signature.batching and METADATA not in self._option_names
        """Whether calls of one group are alike, if their inputs are bytes in one layout."""

    def attach(self, owner: Owner) -> None:
        """Set the thread that all else is called on; further processes start."""
        super().attach(owner)
        self._runners.attach(owner)
        if self._network is not None:
            self._network.attach(owner)
        self.stages = self._new_stages(owner)
        owner.post(self._begin)

    def _new_stages(self, owner: Owner) -> Sequence[Stage]:
        found: list[Stage] = []
        if self._signature.has_pictures:
            inputs = enumerate(self.tensors.inputs)
            places = [at for at, each in inputs if each.is_picture]
            pool, name = self._runtime.decoder(), self.label[0]
            self._decode = DecodeStage(name, places, pool, owner.clock, owner.post)
            found.append(self._decode)
        methods, most = self._signature.methods, self._config.max_response_bytes
        in_parts = self._signature.in_parts
        taken = self._note_answered, self._note_part
        answer = AnswerStage(self.label, owner.clock, self.fail, *taken, in_parts=in_parts)
        method = {
            each: MethodStage(
                each, self.label, self._runners, most, answer, is_last=each == methods[-1]
            )
            for each in methods
        }
        found += [method[each] for each in (PREPROCESS, PREDICT) if each in method]
        if self._network is not None:
            found.append(RunStage(self._network))
        if POSTPROCESS in method:
            found.append(method[POSTPROCESS])
        return [*found, answer]

    def _begin(self) -> None:
        for process in self._runtime.take_first():
            self._runners.processes.add(process)
        self._runners.processes.start_missing()

    # As an entry

    def submit(self, group: Group, *, is_final: bool = True) -> int:
        if (reason := self._reason(group)) is not None:
            self.fail(group, reason)
            return len(group.streams)
        return super().submit(group, is_final=is_final)

    def add(self, group: Group) -> None:
        if (reason := self._reason(group)) is not None:
            self.fail(group, reason)
            return
        super().add(group)

    def _reason(self, group: Group) -> ServingError | None:
        """Return why a call can't be taken, if `refuse` has given no reason."""
        if self._signature.in_parts and not group.encoder.in_parts:
            return answers_in_parts(self.label[0])
        return self._runners.rest if self._refusal is None else None

    @property
    def is_refusing(self) -> bool:
        return self._refusal is not None or self._runners.rest is not None

    @property
    def is_busy(self) -> bool:
        return bool(self._queue.num_rows or any(each.calls for each in [*self._open.values()]))

    @property
    def oldest_run_s(self) -> float:
        inside_s = math.inf if self._network is None else self._network.oldest_run_s
        return min(self._runners.oldest_s, inside_s)

    @property
    def max_run_s(self) -> float:
        inside_s = 0.0 if self._network is None else self._network.max_run_s
        return max(self._runners.longest_s, inside_s)

    def _running(self) -> Iterable[Group]:
        return (group for joined in self._open.values() for group in joined.calls)

    def usage(self) -> HandlerUsage:
        return self._runners.usage()

    def stop_batching(self) -> None:
        if self._network is not None:
            self._network.stop_batching()

    def close(self) -> None:
        """End the processes; calls have had their outcomes."""
        self._runners.close()
        for process in self._runtime.take_first():
            process.close()
        if self._network is not None:
            self._network.close()

    def turn(self, now_s: float) -> bool:
        """Give the processes work; return whether calls wait for one, or have one."""
        self._is_scheduled = False
        if self._is_ahead:
            most = math.inf if self._decode is None else _AHEAD * max(1, len(self._runners.slots))
            while self._queue.num_rows and self._has_room and self._num_ahead < most:
                self._take(now_s)
        self._runners.hand_out(now_s, self._take_for_process)
        return bool(self._open or self._queue.num_rows)

    def tick(self, now_s: float) -> None:
        """End what is late, and processes that take too long or too much."""
        if self._network is not None:
            self._network.tick(now_s)
        if now_s >= self._next_sweep_s:
            self._next_sweep_s = now_s + _SWEEP_S
            self.end_late(self._queue.sweep(now_s))
            if not self._queue.num_rows and self._runners.slots:
                self._queue.away_s = 0.0
            for joined in [*self._open.values()]:
                joined.wanted(now_s)
            self._runners.sweep(now_s)
        self._runners.tick(now_s)

    # From the queue to the first stage

    @property
    def _has_room(self) -> bool:
        return len(self._open) < self._most_open * max(1, len(self._runners.slots))

    @property
    def _num_ahead(self) -> int:
        decoding = 0 if self._decode is None else self._decode.num_at_work
        return decoding + len(self._runners.ready)

    def _take_for_process(self, now_s: float) -> bool:
        """Have new calls wait for a process; return whether there are some."""
        if self._is_ahead or not self._queue.num_rows or not self._has_room:
            return False
        while self._queue.num_rows and not self._runners.ready:
            self._take(now_s)
        return bool(self._runners.ready)

    def _take(self, now_s: float) -> None:
        """Begin calls that wait: one, or some whose rows are independent."""
        is_joining, rows = self._signature.batching, self._queue.run_rows
        if is_joining:  # else some processes would have all, and others none
            num_idle = max(1, sum(not slot.jobs for slot in self._runners.slots))
            rows = min(rows, -(-self._queue.num_rows // num_idle))
        groups, late = self._queue.take(rows, now_s)
        if late:
            self.end_late(late)
        members = [member for group in groups for member in self._members_of(group)]
        alike: dict[Any, list[_Member]] = {}
        for member in members:
            key = self._key(*member) if is_joining else object()
            alike.setdefault(key, []).append(member)
        for each in alike.values():
            self._join(each)

    def _members_of(self, group: Group) -> list[_Member]:
        """Return calls with their inputs: those of a group together where all are alike."""
        is_bytes = group.encoder.layout is not None or self.tensors.row_bytes
        todo = [group] if self._may_stay and is_bytes else [*group.calls()]
        found: list[_Member] = []
        for calls in todo:
            try:
                found.append((calls, arrays_of(calls, self.tensors)))
            except InvalidRequest as err:  # between the tensors of a message in a known layout
                if len(calls.streams) > 1:
                    todo += calls.calls()  # which of them it is
                else:
                    self.fail(calls, err)
        return found

    def _key(self, call: Group, arrays: Sequence[Array]) -> object:
        """Return what calls have in common that go together."""
        shapes = tuple([array.shape[1:] for array in arrays])
        if not self._option_names:
            return shapes
        return shapes, repr(sorted(self._options_of(call).items()))

    def _options_of(self, call: Group) -> Mapping[str, Any]:
        """Return the keyword arguments that the handler names."""
        if not self._option_names:
            return _NO_OPTIONS
        options = {}
        if PARAMETERS in self._option_names:
            options[PARAMETERS] = dict(getattr(call.encoder, "parameters", {}))
        if METADATA in self._option_names:
            options[METADATA] = dict(call.caller.metadata(call.streams[0]))
        return options

    def _join(self, members: list[_Member], attempt: Attempt = Attempt.FIRST) -> None:
        calls = [call for call, _ in members]
        arrays = members[0][1]
        if len(members) > 1:
            columns = zip(*[each for _, each in members], strict=True)
            arrays = [np.concatenate(each) for each in columns]
        joined = Joined(self, next(self._numbers), calls, self._options_of(calls[0]), attempt)
        if not self._open:
            self._num_done, self._pace_since_s = 0, self.owner.clock()
        self._open[joined.number] = joined
        joined.go_on(arrays)

    # Behind the first stage

    def fail_joined(
        self, joined: Joined, error: ServingError, attempt: Attempt, num_suspects: int
    ) -> None:
        """Fail a call; of several, or where only the state is lost, begin each once more.

        Of several calls that a process has worked on it is not known which one has ended it.
        """
        calls, parts = open_calls(joined.calls), None
        if joined.num_parts:
            if attempt is Attempt.AGAIN:
                error = ModelError(str(error))  # it did not end by a call of its own
        elif attempt is Attempt.AGAIN:
            parts = [calls] if calls and joined.attempt is Attempt.FIRST else None
        elif max(joined.num_calls, num_suspects) > 1:  # even if the others have left by now
            parts = [[call] for group in calls for call in group.calls()]
        if parts is None:
            for group in calls:
                self.fail(group, error)
        joined.calls = []
        if joined.begun_s == math.inf:  # else its outcome comes, and is dropped
            if parts is None:
                self.end(joined)
            else:
                self._forget(joined)
        for part in parts or ():
            self._join([(group, arrays_of(group, self.tensors)) for group in part], attempt)
        self.schedule()

    def end(self, joined: Joined) -> None:
        """Forget calls, and their state; answered or not, their work counts in the pace."""
        if joined.is_over:
            return
        self._forget(joined)
        if joined.attempt is Attempt.ALONE:  # calls that share a run are faster
            self._num_done, self._pace_since_s = 0, self.owner.clock()
        elif joined.started_s:
            self._note_pace(joined.num_rows)

    def _forget(self, joined: Joined) -> None:
        if joined.state_at is not None:
            self._runners.drop(joined)
        joined.is_over, joined.calls = True, []
        self._open.pop(joined.number, None)
        if self._queue.num_rows:  # there is room now
            self.schedule()

    def _note_pace(self, num_rows: int) -> None:
        """Let the queue know how fast calls are done; they overlap, so their times do not."""
        self._num_done += num_rows
        now_s = self.owner.clock()
        seconds = now_s - self._pace_since_s
        if seconds >= _PACE_S or not self._open:
            self._queue.note_run(self._num_done, seconds)
            self._num_done, self._pace_since_s = 0, now_s

    def _note_answered(self, result: Result, calls: list[Group]) -> None:
        is_run = self._network is None
        observe = self._metrics.observe_run if is_run else self._metrics.observe_calls
        self.owner.defer(partial(observe, result, calls, self.label))

    def _note_part(self, seconds: float, is_first: bool) -> None:
        self._metrics.observe_part(self.label, seconds, is_first=is_first)

    # From the processes

    def note_start(self) -> None:
        """Take note that a process has started, or could not."""
        self.schedule()
        self._runtime.on_block()

    def note_end(self, start_s: float) -> None:
        """Refuse what waits if no process is started for now; calls wait for one else."""
        self._queue.away_s = start_s
        if (rest := self._runners.rest) is not None:
            self._fail_waiting(rest)
        self.schedule()  # it may have had a suspect: the next one may go to another process
        self._runtime.on_block()
