"""The calls of a version with a handler: one queue, some processes, and the model in between.

An `Entry`, as a `Batcher` is: the same turns, deadlines and room. A call, or several of a handler
whose rows are independent, makes a trip:

    WAITING ──▶ DECODING ──▶ READY ──▶ PREPROCESS ──▶ RUNNING ──▶ READY ──▶ POSTPROCESS ──▶ ENDED
    (queue)     (pictures)     │      (a process)    (batcher)            (a process)
                               └─────▶ PREDICT ────────────────────────────────────────────▶ ENDED

Phases that a handler has no method for are left out. A trip whose callers have all left, or are
late, is not begun; one that has begun is abandoned: its process goes on, and the outcome is
dropped. Only the limits of time and memory, and crashes, end a process. Calls that were together in
one that has ended are run once more, each alone and one of them at a time, so that the next process
ends on the call that is at fault. Trips whose state is lost begin once more.
"""

import itertools
import logging
import math
import secrets
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

from serving import errors
from serving.batching.batcher import Batcher
from serving.batching.entry import Entry
from serving.batching.queue import Queue
from serving.batching.run import (
    Group,
    Owner,
    Ran,
    Result,
    Rows,
    arrays_of,
    divide,
    open_calls,
    too_large_answer,
)
from serving.config import BatchingConfig
from serving.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelError,
    ServingError,
    Unavailable,
)
from serving.handlers.frames import Frame
from serving.handlers.nested import UNWANTED, Find, infer
from serving.handlers.pictures import decode
from serving.handlers.process_set import Launcher, Process, ProcessSet
from serving.handlers.signature import (
    METADATA,
    PARAMETERS,
    POSTPROCESS,
    PREDICT,
    PREPROCESS,
    HandlerSignature,
)
from serving.handlers.trip import Attempt, Slot, Trip, TripPhase
from serving.processes.end import out_of_memory, out_of_time
from serving.telemetry.metrics import HandlerUsage, Metrics, OwnCounts
from serving.tensors import Array

_log = logging.getLogger(__name__)

_OPEN_TRIPS = 32
"""Trips between their phases, for each process."""
_LOOK_S, _SWEEP_S = 1.0, 0.1
"""How often the memory of processes is looked at, and calls that wait or run."""
_PACE_S = 0.005
"""The least time over which the pace is measured."""


class PictureDecoder(Protocol):
    """Decodes pictures in processes of their own: `BoundedPool`."""

    def submit(self, owner: str, function: Callable[..., Any], *args: Any) -> "Future[Any]": ...


_Member = tuple[Group, Sequence[Array]]
"""A call, and its inputs."""


class HandlerFailure(Exception):
    """An error of a handler: its text is the traceback in the handler's process."""


class HandlerBatcher(Entry):
    """Runs the calls of one version, and gives each exactly one outcome; of the owner's thread."""

    def __init__(
        self,
        model: Any,
        config: BatchingConfig,
        metrics: Metrics,
        name: str,
        runtime: "HandlerRuntime",
    ) -> None:
        """Prepare; `attach` comes before the first call.

        Args:
            model: the version.
            config: sizes and limits.
            metrics: counts.
            name: the model's.
            runtime: what else it needs.
        """
        queues = (Queue(config.queue_capacity),)
        super().__init__((name, model.version), model.tensors, config, metrics, queues)
        self._runtime = runtime
        self._signature: HandlerSignature = runtime.signature
        self._network = runtime.network
        self._queue.run_rows = config.max_batch_size if self._signature.batching else 1
        self._slots: list[Slot] = []
        self._trips: dict[int, Trip] = {}
        self._ready: deque[Trip] = deque()
        """Trips that wait for any process."""
        self._suspects: deque[Trip] = deque()
        """Trips of `Attempt.ALONE`, of which one is worked on at a time."""
        self._numbers = itertools.count(1)
        self._processes = ProcessSet(
            runtime.launcher, runtime.num_processes, self._add, self._note_failed
        )
        self._next_look_s = self._next_sweep_s = 0.0
        self._num_done, self._pace_since_s = 0, 0.0
        """Rows that processes were through with since then, while there were others."""
        self._has_pictures = self._signature.has_pictures
        first = next(iter(self._signature.methods))
        self._first = first if first in (PREPROCESS, PREDICT) else ""

    def attach(self, owner: Owner) -> None:
        """Set the thread that all else is called on; further processes start."""
        super().attach(owner)
        self._processes.attach(owner)
        if self._network is not None:
            self._network.attach(owner)
        owner.post(self._begin)

    def _begin(self) -> None:
        for process in self._runtime.take_first():
            self._processes.add(process)
        self._processes.start_missing()

    # As an entry

    @property
    def max_run_s(self) -> float:
        return self._config.max_handler_s

    @property
    def is_busy(self) -> bool:
        return bool(self._queue.num_rows or any(trip.calls for trip in [*self._trips.values()]))

    @property
    def oldest_run_s(self) -> float:
        return min((slot.begun_s for slot in [*self._slots]), default=math.inf)

    @property
    def is_refusing(self) -> bool:
        return self._refusal is not None or self._processes.is_resting

    def submit(self, group: Group, *, is_final: bool = True) -> int:
        if self._processes.is_resting and self._refusal is None:
            self.fail(group, self._rest())
            return len(group.streams)
        return super().submit(group, is_final=is_final)

    def add(self, group: Group) -> None:
        if self._processes.is_resting and self._refusal is None:
            self.fail(group, self._rest())
            return
        super().add(group)

    def _rest(self) -> ServingError:
        left_s = max(0.1, self._processes.rest_s)
        text = "the handler's processes end again and again"
        return Unavailable(f"{text}: the next start is in {left_s:.1f} s", retry_after_s=left_s)

    def _running(self) -> Iterable[Group]:
        return (group for trip in self._trips.values() for group in trip.calls)

    def stop_batching(self) -> None:
        if self._network is not None:
            self._network.stop_batching()

    def close(self) -> None:
        """End the processes; calls have had their outcomes."""
        self._processes.close()
        for process in self._runtime.take_first():
            process.close()
        for slot in self._slots:
            slot.process.close()
        self._slots = []
        if self._network is not None:
            self._network.close()

    def usage(self) -> HandlerUsage:
        """Return how many processes there are; from any thread."""
        slots = [*self._slots]
        memory = sum(slot.process.memory_bytes for slot in slots)
        return HandlerUsage(len(slots), self._processes.num_starts, memory)

    def turn(self, now_s: float) -> bool:
        """Give the processes work; return whether calls wait for one, or have one."""
        self._is_scheduled = False
        for slot in self._slots:
            while (
                slot.trip is None
                and (slot.own or self._ready or self._suspects or self._queue.num_rows)
                and (trip := self._next_for(slot, now_s)) is not None
            ):
                self._work(slot, trip, now_s)
        if not self._first or self._has_pictures:  # these need no process at first
            self._take_ahead(now_s)
        return bool(self._trips or self._queue.num_rows)

    def tick(self, now_s: float) -> None:
        """End what is late, and processes that take too long or too much."""
        if self._network is not None:
            self._network.tick(now_s)
        if now_s >= self._next_sweep_s:
            self._next_sweep_s = now_s + _SWEEP_S
            self._sweep(now_s)
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + _LOOK_S
            self._look_at_memory()
        self._processes.start_missing()

    def _sweep(self, now_s: float) -> None:
        self._end_late(self._queue.sweep(now_s))
        if not self._queue.num_rows and self._slots:
            self._queue.away_s = 0.0
        for trip in [*self._trips.values()]:
            trip.calls, late = divide(open_calls(trip.calls), now_s)
            self._end_late(late)
            if not trip.calls and trip.phase is TripPhase.RUNNING:
                self._end(trip)
        for slot in [*self._slots]:
            if slot.trip is not None and not slot.trip.calls:
                slot.refuse_asked(UNWANTED)
            if slot.trip is not None and now_s - slot.begun_s > self._config.max_handler_s:
                text = f"the handler {out_of_time(self._config.max_handler_s)}"
                self._remove(slot, text, DeadlineExceeded(text))

    def _look_at_memory(self) -> None:
        most = self._config.max_handler_bytes
        for slot in [*self._slots] if most else ():
            if slot.process.memory_bytes > most:
                text = f"the handler's process {out_of_memory(most)}"
                self._remove(slot, text, ModelError(text))

    # Trips

    def _next_for(self, slot: Slot, now_s: float) -> Trip | None:
        """Return the next trip for a process: those that have begun come first."""
        for waiting in (slot.own, self._suspects, self._ready):
            while waiting and not (waiting[0].attempt is Attempt.ALONE and self._is_suspect_out):
                trip = waiting.popleft()
                if self._is_wanted(trip, now_s):
                    return trip
        if not self._first or self._has_pictures or not self._has_room:
            return None
        while self._queue.num_rows and not self._ready:
            self._take(now_s)
        return self._ready.popleft() if self._ready else None

    @property
    def _is_suspect_out(self) -> bool:
        return any(slot.has_suspect for slot in self._slots)

    @property
    def _has_room(self) -> bool:
        return len(self._trips) < _OPEN_TRIPS * max(1, len(self._slots))

    def _is_wanted(self, trip: Trip, now_s: float) -> bool:
        """Return whether somebody waits for a trip; end it if nobody does."""
        trip.calls, late = divide(open_calls(trip.calls), now_s)
        self._end_late(late)
        if not trip.calls:
            self._end(trip)
        return bool(trip.calls)

    def _take(self, now_s: float) -> None:
        """Begin trips of calls that wait: one call, or some whose rows are independent."""
        rows = self._queue.run_rows
        if self._signature.batching:  # else some processes would have all, and others none
            num_idle = max(1, sum(slot.trip is None for slot in self._slots))
            rows = min(rows, -(-self._queue.num_rows // num_idle))
        groups, late = self._queue.take(rows, now_s)
        self._end_late(late)
        alike: dict[Any, list[_Member]] = {}
        for group in groups:
            for at in range(len(group.streams)):
                call = group.cut(at, at + 1)
                try:
                    arrays = arrays_of(call, self.tensors)
                except InvalidRequest as err:  # between the tensors of a message in a known layout
                    self.fail(call, err)
                    continue
                key = self._key(call, arrays) if self._signature.batching else object()
                alike.setdefault(key, []).append((call, arrays))
        for members in alike.values():
            self._begin_trip(members)

    def _key(self, call: Group, arrays: Sequence[Array]) -> object:
        """Return what calls have in common that go together."""
        shapes = tuple(array.shape[1:] for array in arrays)
        return shapes, repr(sorted(self._options_of(call).items()))

    def _options_of(self, call: Group) -> dict[str, Any]:
        """Return the keyword arguments that the handler names."""
        options: dict[str, Any] = {}
        if PARAMETERS in self._signature.options:
            options[PARAMETERS] = dict(getattr(call.encoder, "parameters", {}))
        if METADATA in self._signature.options:
            options[METADATA] = dict(call.caller.metadata(call.streams[0]))
        return options

    def _begin_trip(self, members: "list[_Member]", attempt: Attempt = Attempt.FIRST) -> None:
        calls = [call for call, _ in members]
        columns = zip(*(arrays for _, arrays in members), strict=True)
        joined = [each[0] if len(each) == 1 else np.concatenate(each) for each in columns]
        trip = Trip(next(self._numbers), calls, joined, self._options_of(calls[0]), attempt)
        if not self._trips:
            self._num_done, self._pace_since_s = 0, self.owner.clock()
        trip.step = self._first
        self._trips[trip.number] = trip
        if self._has_pictures:
            self._decode(trip)
        elif self._first:
            self._let_wait(trip)
        else:
            self._run(trip)

    def _let_wait(self, trip: Trip) -> None:
        """Let a trip wait for a process."""
        if trip.process is not None:
            trip.process.own.append(trip)
        elif trip.attempt is Attempt.ALONE:
            self._suspects.append(trip)
        else:
            self._ready.append(trip)

    def _take_ahead(self, now_s: float) -> None:
        """Begin trips that need no process yet: pictures are decoded, or the model is first."""
        most = 2 * max(1, len(self._slots)) if self._has_pictures else math.inf
        while self._queue.num_rows and self._has_room and self._num_ahead < most:
            self._take(now_s)

    @property
    def _num_ahead(self) -> int:
        decoding = sum(trip.phase is TripPhase.DECODING for trip in self._trips.values())
        return decoding + len(self._ready)

    def _decode(self, trip: Trip) -> None:
        """Have pictures decoded in other processes."""
        trip.phase = TripPhase.DECODING
        places = [at for at, each in enumerate(self.tensors.inputs) if each.content == "picture"]
        files = [trip.arrays[at].tolist() for at in places]
        owner = trip.calls[0].caller.address or "unix"
        try:
            future = self._runtime.decoder().submit(owner, decode, files)
        except ServingError as err:
            self._end_with(trip, err)
            return
        post = self.owner.post
        future.add_done_callback(lambda done: post(partial(self._decoded, trip, places, done)))

    def _decoded(self, trip: Trip, places: list[int], future: "Future[Any]") -> None:
        error = None if future.cancelled() else future.exception()
        if future.cancelled() or trip.phase is not TripPhase.DECODING:
            self._end(trip)
            return
        if error is not None:
            known = error if isinstance(error, ServingError) else ModelError()
            if known is not error:
                _log.error("%s: a picture could not be decoded", self.label[0], exc_info=error)
            self._fail_or_divide(trip, known)
        else:
            arrays = list(trip.arrays)
            for at, pixels in zip(places, future.result(), strict=True):
                column = np.empty(len(pixels), object)
                for row, each in enumerate(pixels):
                    column[row] = each
                arrays[at] = column
            trip.arrays, trip.phase = arrays, TripPhase.READY
            self._let_wait(trip)
        self._schedule()

    # A process's work

    def _work(self, slot: Slot, trip: Trip, now_s: float) -> None:
        """Have a process do the next step of a trip."""
        trip.phase, trip.process, slot.trip, slot.begun_s = TripPhase.WORKING, slot, trip, now_s
        trip.started_s = trip.started_s or now_s
        fields: dict[str, Any] = {
            "kind": "job",
            "job": trip.number,
            "phase": trip.step,
            "rows": trip.num_rows,
            "max_bytes": self._config.max_response_bytes,
        }
        if trip.options:
            fields["options"] = trip.options
        slot.process.send(fields, trip.arrays)
        trip.arrays = ()

    def _take_frame(self, slot: Slot, frame: Frame) -> None:
        """Take a message of a process."""
        fields = frame.fields
        kind, trip = fields.get("kind"), slot.trip
        if kind == "metrics":
            self._metrics.count_own(self.label, OwnCounts.of(fields["own"]))
            return
        if trip is None or fields.get("job") != trip.number:
            self._remove(slot, "it answers what nobody has asked", ModelError())
            return
        if kind == "infer":
            infer(slot, self._runtime.find, fields, frame.arrays, self.owner.clock())
            return
        now_s = self.owner.clock()
        slot.trip, begun_s, slot.begun_s = None, slot.begun_s, math.inf
        if slot.asked:  # by threads that the step has left behind
            slot.refuse_asked(UNWANTED)
        trip.times.append((trip.step, begun_s, now_s))
        self._metrics.observe_step(self.label, trip.step, now_s - begun_s)
        is_through = trip.step == self._signature.methods[-1] or fields["kind"] != "done"
        self._processes.note_answer(slot.process, trip.num_calls * is_through)
        if self._is_wanted(trip, now_s):
            self._go_on(slot, trip, fields, frame.arrays)
        elif fields.get("state"):
            slot.process.send({"kind": "drop", "job": trip.number})
        self._schedule()

    def _go_on(
        self, slot: Slot, trip: Trip, fields: dict[str, Any], arrays: Sequence[Array]
    ) -> None:
        if fields["kind"] == "failed":
            self._fail_or_divide(trip, self._logged(trip, fields["text"]))
        elif fields["kind"] == "too_large":
            most = self._config.max_response_bytes
            self._fail_or_divide(trip, too_large_answer(fields["output"], fields["bytes"], most))
        elif fields["kind"] == "error":
            error = getattr(errors, fields["error"], ModelError)(fields["text"])
            self._fail_or_divide(trip, error)
        elif trip.step == PREPROCESS:
            trip.process = slot if fields["state"] else None
            trip.arrays = arrays
            self._run(trip)
        else:
            self._answer(trip, arrays)

    def _logged(self, trip: Trip, text: str) -> ModelError:
        """Log why a step failed, with an id that the caller gets, too."""
        identifier = secrets.token_hex(4)
        name, version = self.label
        facts = name, version, trip.step, identifier
        _log.error("model %s version %s: %s failed, id %s", *facts, exc_info=HandlerFailure(text))
        return ModelError(f"the handler failed on this request: id {identifier}")

    # The model's run

    def _run(self, trip: Trip) -> None:
        """Have the model run between the handler's methods."""
        network, arrays = self._network, trip.arrays
        assert network is not None
        tensors = network.tensors
        trip.arrays, trip.phase, trip.step = (), TripPhase.RUNNING, POSTPROCESS
        num_rows = len(arrays[0]) if tensors.is_batchable and arrays else 1
        if not num_rows:  # a page without a crop
            self._have_run(trip, [each.no_rows() for each in tensors.outputs])
            return
        message = arrays[0].tobytes() if tensors.row_bytes else tuple(arrays)
        encoder = Rows(network, None, num_rows)
        now_s = self.owner.clock()
        trip.started_s = trip.started_s or now_s
        network.add(
            Group(trip, [b""], [message], encoder, _NetworkSink(self, trip), now_s, trip.deadline_s)
        )

    def _have_run(self, trip: Trip, outputs: Sequence[Array]) -> None:
        """Go on with a model's outputs."""
        trip.arrays = outputs
        if POSTPROCESS not in self._signature.methods:
            self._answer(trip, outputs)
            return
        trip.phase = TripPhase.READY
        self._let_wait(trip)
        self._schedule()

    # Outcomes

    def _answer(self, trip: Trip, outputs: Sequence[Array]) -> None:
        """Give each call its rows of the outputs."""
        now_s = self.owner.clock()
        result = Result(outputs, trip.num_rows, self.label[1], None, trip.started_s, now_s)
        run = HandlerRun((trip.started_s, now_s, *self.label, trip.num_rows))
        run.steps = trip.times
        for group in trip.calls:
            try:
                responses = group.encoder.encode(result, trip.places[id(group)], 1)
            except Exception:  # a bug of ours: it ends this call, and never the owner
                _log.exception("a call could not be answered")
                self.fail(group, ModelError())
                continue
            group.sink.answer(group, responses, run)
        is_run = trip.step == PREDICT
        observe = self._metrics.observe_run if is_run else self._metrics.observe_calls
        self.owner.defer(partial(observe, result, [*trip.calls], self.label))
        self._end(trip)

    def _note_pace(self, num_rows: int) -> None:
        """Let the queue know how fast calls are done; trips overlap, so their times do not."""
        self._num_done += num_rows
        now_s = self.owner.clock()
        seconds = now_s - self._pace_since_s
        if seconds >= _PACE_S or not self._trips:
            self._queue.note_run(self._num_done, seconds)
            self._num_done, self._pace_since_s = 0, now_s

    def _fail_or_divide(
        self, trip: Trip, error: ServingError, attempt: Attempt = Attempt.FIRST
    ) -> None:
        """Fail a call; of several, begin each once more, alone."""
        if trip.num_calls > 1:  # even if the others have left by now
            members = self._members_of(trip)
            self._forget(trip)
            for each in members:
                self._begin_trip([each], attempt)
            self._schedule()
        else:
            self._end_with(trip, error)

    def _members_of(self, trip: Trip) -> "list[_Member]":
        """Return the calls of a trip that somebody waits for, as they came."""
        return [(call, arrays_of(call, self.tensors)) for call in open_calls(trip.calls)]

    def _begin_again(self, trip: Trip) -> None:
        """Begin a trip once more whose state is lost."""
        members = self._members_of(trip)
        if trip.attempt is not Attempt.FIRST or not members:
            self._end_with(trip, Unavailable("the handler's process has ended"))
            return
        self._forget(trip)
        self._begin_trip(members, Attempt.AGAIN)
        self._schedule()

    def _end_with(self, trip: Trip, error: ServingError) -> None:
        for group in open_calls(trip.calls):
            self.fail(group, error)
        self._end(trip)

    def _end(self, trip: Trip) -> None:
        """Forget a trip, and its state; answered or not, its work counts in the pace."""
        if trip.phase is TripPhase.ENDED:
            return
        self._forget(trip)
        if trip.attempt is Attempt.ALONE:  # calls that share a run are faster
            self._num_done, self._pace_since_s = 0, self.owner.clock()
        elif trip.started_s:
            self._note_pace(trip.num_rows)

    def _forget(self, trip: Trip) -> None:
        slot = trip.process
        if slot is not None and trip.phase is not TripPhase.WORKING:
            slot.process.send({"kind": "drop", "job": trip.number})
        trip.phase, trip.calls, trip.process = TripPhase.ENDED, [], None
        self._trips.pop(trip.number, None)
        if self._queue.num_rows:  # there is room now
            self._schedule()

    # Processes

    def _add(self, process: Process) -> None:
        """Take a process that is ready."""
        slot = Slot(process)
        self._slots.append(slot)
        process.attach(self.owner, partial(self._take_frame, slot), partial(self._take_end, slot))
        self._schedule()
        self._runtime.on_block()

    def _note_failed(self, error: ServingError) -> None:
        name, version = self.label
        _log.error("model %s version %s: no process: %s", name, version, error)
        self._runtime.on_block()

    def _take_end(self, slot: Slot, how: str) -> None:
        """Take the end of a process that nobody has ended here."""
        text = f"the handler's process has ended: {how}"
        self._remove(slot, text, ModelError("the handler's process has ended on this request"))

    def _remove(self, slot: Slot, reason: str, error: ServingError) -> None:
        """End a process; its trip fails, and those whose state it has."""
        if slot not in self._slots:
            return
        self._slots.remove(slot)
        slot.process.kill()
        slot.asked.clear()
        name, version = self.label
        _log.error("model %s version %s: %s", name, version, reason)
        trip, slot.trip = slot.trip, None
        for other in [*self._trips.values()]:
            if other is not trip and other.process is slot:
                other.process = None
                self._begin_again(other)
        if trip is not None:
            trip.process = None
            if trip.calls:
                self._fail_or_divide(trip, error, Attempt.ALONE)
            else:
                self._end(trip)
        self._queue.away_s = slot.process.start_s
        self._processes.note_end(slot.process, trip.num_calls if trip else 0)
        if self._processes.is_resting:
            rest_s = self._processes.rest_s
            _log.error("model %s version %s: no process for %.1f s", name, version, rest_s)
            self._fail_waiting(self._rest())
        self._schedule()  # it may have had a suspect: the next one may go to another process
        self._runtime.on_block()


class HandlerRun(tuple):  # type: ignore[type-arg]
    """A `Ran` of a version with a handler, with its steps: name, start and end of each."""

    steps: Sequence[tuple[str, float, float]] = ()


class HandlerRuntime(NamedTuple):
    """What a version with a handler runs on."""

    signature: HandlerSignature
    network: Batcher | None
    """The model between its methods."""
    launcher: Launcher
    take_first: Callable[[], Sequence[Process]]
    """Returns the processes that started with the loading of the version, once."""
    num_processes: int
    find: Find
    decoder: Callable[[], PictureDecoder]
    on_block: Callable[[], object]
    """Called when it may have become able to serve, or unable."""


class _NetworkSink:
    """Takes the outcome of the model's run for a trip."""

    def __init__(self, batcher: HandlerBatcher, trip: Trip) -> None:
        self._batcher, self._trip = batcher, trip

    def answer(self, group: Group, responses: Sequence[Any], run: Ran) -> None:
        if responses and self._trip.phase is TripPhase.RUNNING:
            self._trip.times.append(("run", run[0], run[1]))
            outputs, _ = responses[0]
            self._batcher._have_run(self._trip, outputs)

    def fail(self, group: Group, error: ServingError) -> None:
        if self._trip.phase is TripPhase.RUNNING:
            self._batcher._fail_or_divide(self._trip, error)
