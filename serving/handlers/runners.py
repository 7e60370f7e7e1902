"""A handler's processes as runners: which of them works on what, and their limits.

A process does one job at a time; one whose methods are `async def` several, each a task of its
event loop. Calls that have begun wait in lines of their own, and come before new ones:

    the process that has their state    `Slot.own`; behind all others `Slot.parts`, whose next part
                                        is wanted
    any, one at a time of all           `suspects`: a process has ended on them and others; each
                                        goes to a process that does nothing else meanwhile
    any                                 `ready`

A process that takes too long or too much memory, says nonsense or crashes is ended. What it worked
on fails; calls that were together are run once more, each alone and one of them at a time, so that
the next process ends on the call that is at fault. Those whose state it had begin once more.

Of an answer in parts some are asked for ahead, up to `_AHEAD` of a call and of a process, in turns:
a part costs no way there and back. They wait in the process's socket, and none is ahead of a call
that is new.

A task that takes too long, or that nobody waits for, is cancelled, and the process goes on: it ends
if the task does not, or if one blocks the loop. That one is known then, and the others begin once
more, together as before.
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
from serving.handlers.signature import HandlerSignature
from serving.processes.end import out_of_memory, out_of_time
from serving.telemetry.metrics import HandlerUsage, Metrics, OwnCounts
from serving.tensors import Array

_log = logging.getLogger(__name__)

_CANCEL_S = 5.0
"""How long a task that took too long has to end, once it is cancelled."""
_AHEAD = 8
"""The most parts of a call that are asked for, or that its reader has to take; and of a process
that makes one after the other."""
_FEW_BYTES = 16 << 10
"""Larger parts are asked for one at a time."""
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

    __slots__ = ("asked", "cancelled", "heard_s", "jobs", "num_steps", "open", "own", "parts",
                 "process", "states")  # fmt: skip

    def __init__(self, process: Process) -> None:
        self.process = process
        self.jobs: dict[int, tuple[Joined, Step]] = {}
        """What it works on, by number."""
        self.num_steps = 0
        """Outcomes that come of it: one of each job, or of each part that it is to make."""
        self.heard_s = -math.inf
        """When the last outcome came."""
        self.cancelled: set[int] = set()
        """Of these, the tasks that are to end."""
        self.own: deque[_Waiting] = deque()
        """Those that wait for it, which has their state."""
        self.parts: deque[_Waiting] = deque()
        """Those of which it is to make the next part."""
        self.open: set[int] = set()
        """Those whose generators it has or begins, by number."""
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
        if not has_state:
            self.open.discard(joined.number)

    @property
    def has_suspect(self) -> bool:
        """Whether it works on a call that may have ended another process."""
        return any(_is_suspect(joined) for joined, _ in self.jobs.values())

    @property
    def num_begun(self) -> int:
        """How many calls are begun in it."""
        return len(self.open) or len(self.jobs)

    def refuse_asked(self, joined: Joined) -> None:
        """Answer what it has asked of other models for some calls: nobody waits for that."""
        for each in [*self.asked.values()]:
            if each.joined is joined:
                each.fail(None, UNWANTED)
                each.go_on(is_left=True)


def _is_suspect(joined: Joined) -> bool:
    """Return whether calls may have ended another process, and go alone until they have a part."""
    return joined.attempt is Attempt.ALONE and not joined.num_parts


def _num_begun(slot: Slot) -> int:
    return slot.num_begun


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
        signature: HandlerSignature,
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
            signature: the handler's.
        """
        self._label, self._config, self._metrics = label, config, metrics
        self._find, self._line = find, line
        self._is_async = signature.is_async
        is_ahead = signature.in_parts and not signature.is_async
        self._most_steps = _AHEAD if is_ahead else signature.num_jobs
        self._most_open = signature.max_concurrency if signature.in_parts else math.inf
        self.max_s = config.max_handler_s
        """The longest step, in seconds."""
        self.longest_s = self.max_s + _CANCEL_S * signature.is_async
        """How long one may last at most, with its end."""
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
        line, slot = self.ready, joined.state_at
        if joined.num_parts:
            most = _AHEAD if joined.part_bytes <= _FEW_BYTES else 1
            if slot is None or joined.is_in_line or joined.num_ahead >= most:
                return
            joined.is_in_line, line = True, slot.parts
        elif slot is not None:
            line = slot.own
        elif joined.attempt is Attempt.ALONE:
            line = self.suspects
        line.append((joined, step, arrays))

    def hand_out(self, now_s: float, take: Callable[[float], bool]) -> None:
        """Give free processes work: what has begun comes first.

        Args:
            now_s: the time.
            take: has calls that are new wait here; returns False if there are none.
        """
        free = [slot for slot in self.slots if slot.num_steps < self._most_steps]
        while free:
            slot = min(free, key=_num_begun) if len(free) > 1 else free[0]
            if self._is_kept_free(slot, free):
                free.remove(slot)
                continue
            waiting = self._next(slot, now_s, take)
            if waiting is not None:
                self._work(slot, waiting, now_s)
            if waiting is None or slot.num_steps >= self._most_steps:
                free.remove(slot)

    def _next(self, slot: Slot, now_s: float, take: Callable[[float], bool]) -> _Waiting | None:
        """Return what a process is to do next."""
        if slot.jobs and not self._is_async:  # of these only parts are asked for ahead
            has_room = len(slot.open) < self._most_open
            if has_room and (slot.own or self.suspects or self.ready or take(now_s)):
                return None
            return self._next_begun(slot, (slot.parts,), now_s)
        while len(slot.open) < self._most_open:
            if slot.own or self.suspects or self.ready:
                waiting = self._next_begun(slot, (slot.own, self.suspects, self.ready), now_s)
                if waiting is not None:
                    return waiting
            if not take(now_s):
                break
        # Calls that are new come before further parts, so that each begins soon.
        return self._next_begun(slot, (slot.parts,), now_s) if slot.parts else None

    def _is_kept_free(self, slot: Slot, free: Sequence[Slot]) -> bool:
        """Return whether a process gets nothing for now: a suspect is to be alone in it.

        Else it would never be, where several jobs overlap. Among several it is the one that does
        least, or the one that has the suspect's state.
        """
        if not slot.jobs:
            return False
        if slot.has_suspect:
            return True
        if any(each.has_suspect for each in self.slots):
            return False
        least = not any(len(each.jobs) < len(slot.jobs) for each in free)
        return bool((slot.own and _is_suspect(slot.own[0][0])) or (self.suspects and least))

    def _next_begun(
        self, slot: Slot, lines: Sequence[deque[_Waiting]], now_s: float
    ) -> _Waiting | None:
        """Return the next calls of those that have begun."""
        for line in lines:
            while line:
                joined = line[0][0]
                if _is_suspect(joined) and (slot.jobs or any(e.has_suspect for e in self.slots)):
                    break
                found = line.popleft()
                joined.is_in_line = False
                if not joined.is_over and joined.behind is None and joined.wanted(now_s):
                    return found
        return None

    def _work(self, slot: Slot, waiting: _Waiting, now_s: float) -> None:
        joined, step, arrays = waiting
        slot.jobs[joined.number] = joined, step
        if step.is_last and self._most_open < math.inf:
            slot.open.add(joined.number)
        joined.num_asked += 1
        slot.num_steps += 1
        joined.begin_work(now_s)
        slot.process.send(step.job(joined), arrays)
        if joined.num_parts:
            self.wait(joined, step, ())  # for one more, behind those of other calls

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
        if kind == "blocked":
            self._take_block(slot, job and job[0], fields["text"])
            return
        if job is None:
            self._remove(slot, "it answers what nobody has asked", ModelError())
            return
        joined, step = job
        if kind in ("infer", "stream"):
            nested = Nested(slot.asked, slot.process.send, joined, fields["request"])
            nested.begin(self._find, fields, frame.arrays, now_s)
            return
        begun_s, slot.heard_s = self._begun_s(slot, joined), now_s
        num_outcomes = 1 if kind == "part" else joined.num_asked
        slot.num_steps -= num_outcomes
        joined.num_asked -= num_outcomes
        joined.begun_s = now_s if joined.num_asked else math.inf
        if not joined.num_asked:
            del slot.jobs[joined.number]
            slot.cancelled.discard(joined.number)
        if slot.asked and kind != "part":  # by threads that the step has left behind
            slot.refuse_asked(joined)
        if joined.num_parts:  # the first step began it
            begun_first_s = joined.times.pop()[1]
        joined.times.append((step.name, begun_first_s if joined.num_parts else begun_s, now_s))
        self._metrics.observe_step(self._label, step.name, now_s - begun_s)
        is_through = (step.is_last or fields["kind"] != "done") and fields["kind"] != "part"
        self.processes.note_answer(slot.process, joined.num_calls * is_through)
        slot.keep(joined, has_state=fields.get("state", False))
        if joined.wanted(now_s):
            step.take(joined, fields, frame.arrays)
        elif joined.num_asked:
            self._cancel(slot, joined)
        self._line.schedule()

    # Limits

    def _begun_s(self, slot: Slot, joined: Joined) -> float:
        """Return since when a process works on a step: behind the one before, if not beside it."""
        return joined.begun_s if self._is_async else max(joined.begun_s, slot.heard_s)

    def sweep(self, now_s: float) -> None:
        """End what takes too long, and what processes ask of other models for nobody."""
        for slot in [*self.slots]:
            for joined, _ in [*slot.jobs.values()]:
                if not joined.calls and not self._is_async:  # else its task is cancelled
                    slot.refuse_asked(joined)
                too_long_s = now_s - self._begun_s(slot, joined) - self.max_s
                text = f"the handler {out_of_time(self.max_s)}"
                error = DeadlineExceeded(text)
                if not self._is_async:
                    if too_long_s > 0:
                        self._remove(slot, text, error)
                        break
                    if joined.num_asked > 1 and not joined.calls:
                        self._cancel(slot, joined)
                    continue
                if too_long_s > 0 and joined.calls and joined.behind is None:
                    _log.error("model %s version %s: %s: it is cancelled", *self._label, text)
                    joined.failed(error)
                if not joined.calls or joined.behind is not None:
                    self._cancel(slot, joined)
                if too_long_s > _CANCEL_S:
                    reason = f"{text}, and does not end when it is cancelled"
                    self._remove(slot, reason, error, joined)
                    break

    def _cancel(self, slot: Slot, joined: Joined) -> None:
        """Have a job end that nobody waits for; its outcome comes, for all its steps at once."""
        if joined.number not in slot.cancelled:
            slot.cancelled.add(joined.number)
            slot.process.send({"kind": "drop", "job": joined.number})

    def _take_block(self, slot: Slot, joined: Joined | None, place: str) -> None:
        """End a process whose event loop is blocked, by these calls if it is known."""
        text = f"the handler {out_of_time(self.max_s)}"
        reason = f"{text} and blocks its event loop: {place}"
        self._remove(slot, reason, DeadlineExceeded(text), joined)

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
        jobs = ((slot, joined) for slot in [*self.slots] for joined, _ in [*slot.jobs.values()])
        return min((self._begun_s(*each) for each in jobs), default=math.inf)

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

    def _remove(
        self, slot: Slot, reason: str, error: ServingError, guilty: Joined | None = None
    ) -> None:
        """End a process: what it works on fails, and those whose state it has begin once more.

        Args:
            slot: the process.
            reason: for the log.
            error: for the callers of what it works on.
            guilty: the only calls of these that fail, if it is known; others begin once more, too.
        """
        if slot not in self.slots:
            return
        self.slots.remove(slot)
        slot.process.kill()
        slot.asked.clear()
        _log.error("model %s version %s: %s", *self._label, reason)
        jobs, slot.jobs = [joined for joined, _ in slot.jobs.values()], {}
        if len(jobs) > 1 and not self._is_async:  # parts of others are ahead, of none that is new
            guilty = jobs[0]
        suspects = jobs if guilty is None else [guilty]
        others = {joined.number: joined for joined in jobs} | slot.states
        for joined in suspects:
            others.pop(joined.number, None)
        for joined in [*others.values(), *suspects]:
            joined.begun_s, joined.state_at, joined.num_asked = math.inf, None, 0
            joined.is_in_line = False
        for joined in [*others.values()]:
            if joined.calls:
                joined.failed(Unavailable("the handler's process has ended"), Attempt.AGAIN)
            else:
                joined.line.end(joined)
        num_suspects = sum(joined.num_calls for joined in suspects)
        for joined in suspects:
            if joined.calls:
                joined.failed(error, Attempt.ALONE, num_suspects)
            else:
                joined.line.end(joined)
        self.processes.note_end(slot.process, num_suspects)
        if self.processes.is_resting:
            rest_s = self.processes.rest_s
            _log.error("model %s version %s: no process for %.1f s", *self._label, rest_s)
        self._line.note_end(slot.process.start_s)
