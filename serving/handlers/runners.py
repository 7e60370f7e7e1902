"""A handler's processes as runners: which of them works on what, and their limits.

Calls that have begun wait in lines of their own, and come before new ones:

    the process that has their state    `Slot.own`; behind all others `Slot.parts`, whose next part
                                        is wanted
    any, one at a time of all           `suspects`: a process has ended on them and others
    any                                 `ready`

A process that takes too long or too much memory, says nonsense or crashes is ended. What it worked
on fails; calls that were together are run once more, each alone and one of them at a time, so that
the next process ends on the call that is at fault. Those whose state it had begin once more.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from serving.batching.run import Owner
from serving.config import BatchingConfig
from serving.errors import DeadlineExceeded, ModelError, ServingError, Unavailable
from serving.handlers.frames import Frame
from serving.handlers.joined import Attempt, Joined, Line
from serving.handlers.nested import UNWANTED, Find, Nested
from serving.handlers.process_set import Launcher, Process, ProcessSet
from serving.processes.end import out_of_memory, out_of_time
from serving.telemetry.metrics import HandlerUsage, Metrics, OwnCounts
from serving.tensors import Array

_log = logging.getLogger(__name__)

_MAX_JOBS = 1
"""Jobs that a process has at a time."""
_LOOK_S = 1.0
"""How often the memory of processes is looked at."""


class Step(Protocol):
    """A method of the handler, as its processes run it."""

    @property
    def name(self) -> str: ...
    @property
    def is_last(self) -> bool: ...
    def job(self, joined: Joined) -> dict[str, Any]:
        """Return what a process is to do."""

    def take(self, joined: Joined, fields: Mapping[str, Any], arrays: Sequence[Array]) -> None:
        """Go on with its outcome."""


_Waiting = tuple[Joined, Step, Sequence[Array]]


class Slot:
    """A process, and what it does."""

    __slots__ = ("asked", "jobs", "open", "own", "parts", "process", "states")

    def __init__(self, process: Process) -> None:
        self.process = process
        self.jobs: dict[int, tuple[Joined, Step]] = {}
        """What it works on, by number."""
        self.own: deque[_Waiting] = deque()
        """Those that wait for it, which has their state."""
        self.parts: deque[_Waiting] = deque()
        """Those of which it is to make the next part."""
        self.open: set[int] = set()
        """Those whose generators it has, by number."""
        self.states: dict[int, Joined] = {}
        """Those whose state it has."""
        self.asked: dict[int, Nested] = {}
        """Its calls of other models, by their numbers, until they are answered."""

    def keep(self, joined: Joined, *, has_state: bool) -> None:
        """Note whether it has a state of calls now."""
        if has_state:
            joined.state_at, self.states[joined.number] = self, joined
        elif joined.state_at is not None:
            joined.state_at = None
            del self.states[joined.number]
            self.open.discard(joined.number)

    @property
    def has_suspect(self) -> bool:
        """Whether it works on a call that may have ended another process."""
        return any(joined.attempt is Attempt.ALONE for joined, _ in self.jobs.values())

    def refuse_asked(self, joined: Joined) -> None:
        """Answer what it has asked of other models for some calls: nobody waits for that."""
        for each in [*self.asked.values()]:
            if each.joined is joined:
                each.fail(None, UNWANTED)
                each.go_on(is_left=True)


class ProcessRunners:
    """The processes of a version; of the owner's thread."""

    def __init__(
        self,
        label: tuple[str, str],
        launcher: Launcher,
        number: int,
        config: BatchingConfig,
        metrics: Metrics,
        find: Find,
        line: Line,
        most_open: float = math.inf,
    ) -> None:
        """Start none yet.

        Args:
            label: the model's name and version.
            launcher: starts one.
            number: how many there should be.
            config: their limits.
            metrics: counts.
            find: finds the other models that they call.
            line: where calls wait for them.
            most_open: the most generators that a process has.
        """
        self._label, self._config, self._metrics = label, config, metrics
        self._find, self._line, self._most_open = find, line, most_open
        self.processes = ProcessSet(launcher, number, self._add, self._note_failed)
        self.slots: list[Slot] = []
        self.ready: deque[_Waiting] = deque()
        """Those that wait for any process."""
        self.suspects: deque[_Waiting] = deque()
        """Those of `Attempt.ALONE`, of which one is worked on at a time."""
        self._owner: Owner
        self._next_look_s = 0.0

    def attach(self, owner: Owner) -> None:
        """Set the thread that all else is called on."""
        self._owner = owner
        self.processes.attach(owner)

    # Work

    def wait(self, joined: Joined, step: Step, arrays: Sequence[Array]) -> None:
        """Let calls wait for a process, until work is handed out."""
        line = self.ready
        if joined.state_at is not None:
            line = joined.state_at.parts if joined.num_parts else joined.state_at.own
        elif joined.attempt is Attempt.ALONE:
            line = self.suspects
        line.append((joined, step, arrays))

    def hand_out(self, now_s: float, take: Callable[[float], bool]) -> None:
        """Give free processes work: what has begun comes first.

        Args:
            now_s: the time.
            take: has calls that are new wait here; returns False if there are none.
        """
        slots = self.slots
        if len(slots) > 1 and self._most_open < math.inf:
            slots = sorted(slots, key=lambda slot: len(slot.open))
        for slot in slots:
            while len(slot.jobs) < _MAX_JOBS:
                waiting = None
                if len(slot.open) < self._most_open:
                    if slot.own or self.suspects or self.ready:
                        waiting = self._next_begun((slot.own, self.suspects, self.ready), now_s)
                    if waiting is None and take(now_s):
                        continue
                # Calls that are new come before further parts, so that each begins soon.
                if waiting is None and slot.parts:
                    waiting = self._next_begun((slot.parts,), now_s)
                if waiting is None:
                    break
                self._work(slot, waiting, now_s)

    def _next_begun(self, lines: Sequence[deque[_Waiting]], now_s: float) -> _Waiting | None:
        """Return the next calls of those that have begun."""
        for line in lines:
            while line:
                joined = line[0][0]
                if joined.attempt is Attempt.ALONE and any(e.has_suspect for e in self.slots):
                    break
                found = line.popleft()
                if not joined.is_over and joined.wanted(now_s):
                    return found
        return None

    def _work(self, slot: Slot, waiting: _Waiting, now_s: float) -> None:
        joined, step, arrays = waiting
        slot.jobs[joined.number] = joined, step
        joined.begin_work(now_s)
        slot.process.send(step.job(joined), arrays)

    def drop(self, joined: Joined) -> None:
        """Have the process that has the state of calls forget it."""
        slot = joined.state_at
        if slot is not None:
            slot.keep(joined, has_state=False)
            slot.refuse_asked(joined)
            slot.process.send({"kind": "drop", "job": joined.number})

    def _take_frame(self, slot: Slot, frame: Frame) -> None:
        """Take a message of a process."""
        fields = frame.fields
        kind, number = fields.get("kind"), fields.get("job")
        if kind == "metrics":
            self._metrics.count_own(self._label, OwnCounts.of(fields["own"]))
            return
        if kind in ("more", "leave"):  # of an answer in parts, which may have ended meanwhile
            if (nested := slot.asked.get(fields["request"])) is not None:
                nested.go_on(is_left=kind == "leave")
            return
        now_s = self._owner.clock()
        job = slot.jobs.get(number)  # type: ignore[arg-type]
        if job is None:
            self._remove(slot, "it answers what nobody has asked", ModelError())
            return
        joined, step = job
        if kind in ("infer", "stream"):
            nested = Nested(slot.asked, slot.process.send, joined, fields["request"])
            nested.begin(self._find, fields, frame.arrays, now_s)
            return
        del slot.jobs[number]  # type: ignore[arg-type]
        begun_s, joined.begun_s = joined.begun_s, math.inf
        if slot.asked and kind != "part":  # by threads that the step has left behind
            slot.refuse_asked(joined)
        if joined.num_parts:  # the first step began it
            begun_first_s = joined.times.pop()[1]
        joined.times.append((step.name, begun_first_s if joined.num_parts else begun_s, now_s))
        self._metrics.observe_step(self._label, step.name, now_s - begun_s)
        is_through = (step.is_last or fields["kind"] != "done") and fields["kind"] != "part"
        self.processes.note_answer(slot.process, joined.num_calls * is_through)
        slot.keep(joined, has_state=fields.get("state", False))
        if fields["kind"] == "part":
            slot.open.add(joined.number)
        if joined.wanted(now_s):
            step.take(joined, fields, frame.arrays)
        self._line.schedule()

    # Limits

    def sweep(self, now_s: float) -> None:
        """End processes that take too long, and what they ask of other models for nobody."""
        most_s = self._config.max_handler_s
        for slot in [*self.slots]:
            for joined, _ in [*slot.jobs.values()]:
                if not joined.calls:
                    slot.refuse_asked(joined)
                if now_s - joined.begun_s > most_s:
                    text = f"the handler {out_of_time(most_s)}"
                    self._remove(slot, text, DeadlineExceeded(text))
                    break

    def tick(self, now_s: float) -> None:
        """Look at the processes' memory now and then, and start those that are missing."""
        if now_s >= self._next_look_s:
            self._next_look_s = now_s + _LOOK_S
            most = self._config.max_handler_bytes
            for slot in [*self.slots] if most else ():
                if slot.process.memory_bytes > most:
                    text = f"the handler's process {out_of_memory(most)}"
                    self._remove(slot, text, ModelError(text))
        self.processes.start_missing()

    @property
    def oldest_s(self) -> float:
        """When the oldest job began, in monotonic seconds; infinite without any."""
        jobs = (each for slot in [*self.slots] for each in [*slot.jobs.values()])
        return min((joined.begun_s for joined, _ in jobs), default=math.inf)

    @property
    def rest(self) -> ServingError | None:
        """Why no call can be taken for now: no process is there, and none is started."""
        if self.slots or not self.processes.is_resting:
            return None
        left_s = max(0.1, self.processes.rest_s)
        text = "the handler's processes end again and again"
        return Unavailable(f"{text}: the next start is in {left_s:.1f} s", retry_after_s=left_s)

    def usage(self) -> HandlerUsage:
        """Return how many processes there are; from any thread."""
        slots = [*self.slots]
        memory = sum(slot.process.memory_bytes for slot in slots)
        return HandlerUsage(len(slots), self.processes.num_starts, memory)

    def close(self) -> None:
        """End the processes, and start no further one."""
        self.processes.close()
        for slot in self.slots:
            slot.process.close()
        self.slots = []

    # Their lives

    def _add(self, process: Process) -> None:
        """Take a process that is ready."""
        slot = Slot(process)
        self.slots.append(slot)
        process.attach(self._owner, partial(self._take_frame, slot), partial(self._take_end, slot))
        self._line.note_start()

    def _note_failed(self, error: ServingError) -> None:
        _log.error("model %s version %s: no process: %s", *self._label, error)
        self._line.note_start()

    def _take_end(self, slot: Slot, how: str) -> None:
        """Take the end of a process that nobody has ended here."""
        text = f"the handler's process has ended: {how}"
        self._remove(slot, text, ModelError("the handler's process has ended on this request"))

    def _remove(self, slot: Slot, reason: str, error: ServingError) -> None:
        """End a process: what it works on fails, and those whose state it has begin once more."""
        if slot not in self.slots:
            return
        self.slots.remove(slot)
        slot.process.kill()
        slot.asked.clear()
        _log.error("model %s version %s: %s", *self._label, reason)
        jobs, slot.jobs = [joined for joined, _ in slot.jobs.values()], {}
        for joined in jobs:
            slot.states.pop(joined.number, None)
        for joined in [*slot.states.values()]:
            joined.state_at = None
            joined.failed(Unavailable("the handler's process has ended"), Attempt.AGAIN)
        for joined in jobs:
            joined.begun_s, joined.state_at = math.inf, None
            if joined.calls:
                joined.failed(error, Attempt.ALONE)
            else:
                joined.line.end(joined)
        self.processes.note_end(slot.process, sum(joined.num_calls for joined in jobs))
        if self.processes.is_resting:
            rest_s = self.processes.rest_s
            _log.error("model %s version %s: no process for %.1f s", *self._label, rest_s)
        self._line.note_end(slot.process.start_s)
