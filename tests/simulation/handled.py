"""A model with a handler beside the digits, whose processes crash, hang, fail and answer nonsense.

Its processes are played: their frames come in simulated time. For all of that each call gets one
outcome, of its own rows, and a call that went to a process alone is not begun again, unless the
process that had its state has ended on another one. In some worlds its methods are `async def`: a
process has several jobs in hand, which end in any order and may be cancelled, and its event loop
may be blocked. In others it answers in parts, which come in their order, and none once more.
"""

from collections import Counter, deque
from dataclasses import replace
from functools import partial
from random import Random
from typing import Any

import numpy as np

from serving.errors import Unavailable
from serving.handlers.frames import Frame
from serving.handlers.kinds import Array
from serving.handlers.model import with_handler
from serving.handlers.runners import _AHEAD as AHEAD
from serving.handlers.signature import HandlerSignature
from serving.model.loaded import LoadedModel
from serving.tensors import Tensor, TensorSignature
from serving.versions.served import ModelVersions
from tests.simulation import invariants
from tests.simulation.clients import INFER, PARTS, Polite

NAME = "handled"
MAX_HANDLER_S = 2.0
_CALLERS, _CALLERS_S = 3, 8.0
"""How many there are, and how long each is there: connections may not grow old."""
_REST_S = 70.0
"""How long a fault is felt: processes that end again and again are started a minute later."""
_METHODS = ("predict",), ("preprocess", "postprocess"), ("preprocess",), ("postprocess",)
_FAULTS = "crash", "hang", "nonsense", "failed", "error"
_ASYNC_FAULTS = *_FAULTS, "block", "stubborn"
_TENSORS = TensorSignature(
    (Tensor("images", "UINT8", (-1, 100)),),
    (Tensor("probabilities", "FP32", (-1, 10)),),
    is_batchable=True,
)


class _Process:
    """A process that does one job after the other."""

    def __init__(self, handled):
        self.start_s, self.memory_bytes = 0.1, 0
        self._states = {}
        """Images of calls that wait for their next step, by the jobs' numbers."""
        self._handled, self._jobs, self._is_over, self._works = handled, deque(), False, False

    def attach(self, owner, on_frame, on_end):
        self._owner, self._on_frame, self._on_end = owner, on_frame, on_end

    def send(self, head, arrays=()):
        if head["kind"] == "drop":
            self._states.pop(head["job"], None)
        if head["kind"] == "job" and not self._is_over:
            has_state = self._states.pop(head["job"], None) is not None
            is_lost = head["phase"] == "postprocess" and self._handled.has_states and not has_state
            self._handled.simulation.require(not is_lost, "a job goes where its state is not")
            self._handled.note_begun(head, arrays)
            self._jobs.append((head, [*arrays]))
            self._work()

    def kill(self):
        if not self._is_over:
            self._is_over = True
            self._end()

    def _end(self):
        """Note whose work is lost."""
        self._handled.note_lost(self._states)

    close = kill

    def _work(self):
        if self._jobs and not self._works:
            self._works = True
            handled = self._handled
            seconds = handled.random.choice((1e-4, 1e-3, 0.05)) * handled.random.random()
            handled.simulation.after(seconds, self._finish)

    def _finish(self):
        self._works = False
        if self._is_over:
            return
        head, arrays = self._jobs.popleft()
        fault = self._handled.fault_on(arrays[0])
        if fault == "hang":
            return
        if fault == "crash":
            self._crash()
            return
        self._answer(head, arrays, fault)
        self._work()

    def _crash(self):
        self._is_over = True
        self._end()
        self._owner.post(partial(self._on_end, "SIGKILL"))

    def _answer(self, head, arrays, fault):
        is_bad = fault in ("failed", "error")
        answer = {"kind": fault if is_bad else "done", "job": head["job"], "text": "no"}
        answer |= {"error": "InvalidRequest", "state": head["phase"] == "preprocess"}
        if fault == "nonsense":
            answer["job"] += 1000
        elif head["phase"] == "preprocess" and not is_bad:
            self._states[head["job"]] = [image.tobytes() for image in arrays[0]]
        outputs = [] if is_bad else self._handled.outputs(head["phase"], arrays)
        self._owner.post(partial(self._take, Frame(answer, outputs)))

    def _take(self, frame):
        if not self._is_over:
            self._on_frame(frame)


class _LoopProcess(_Process):
    """A process that has several jobs in hand, on an event loop."""

    def __init__(self, handled):
        super().__init__(handled)
        self._in_hand = {}
        """The jobs whose outcome the server does not have, by number."""
        self._answered = set()
        self._is_blocked = False

    def send(self, head, arrays=()):
        if head["kind"] == "drop" and head["job"] in self._in_hand.keys() - self._answered:
            self._handled.note_cancelled(head["job"])
            self._handled.simulation.after(1e-3, self._cancel, head["job"])
            return
        super().send(head, arrays)

    def _work(self):
        handled = self._handled
        head, arrays = self._jobs.popleft()
        self._in_hand[head["job"]] = head, arrays
        handled.note_in_hand(self._in_hand)
        seconds = handled.random.choice((1e-4, 1e-3, 0.05)) * handled.random.random()
        handled.simulation.after(seconds, self._finish_job, head["job"])

    def _cancel(self, number):
        """Cancel a task, unless it has ended, or does not care."""
        is_in_hand = number in self._in_hand.keys() - self._answered
        if self._is_over or self._is_blocked or not is_in_hand:
            return
        head, arrays = self._in_hand[number]
        if head.get("fault") != "stubborn":
            self._answer(head, arrays, "failed")

    def _answer(self, head, arrays, fault):
        self._answered.add(head["job"])
        super()._answer(head, arrays, fault)

    def _take(self, frame):
        if not self._is_over and frame.fields["job"] in self._answered:
            self._answered.remove(frame.fields["job"])
            del self._in_hand[frame.fields["job"]]
        super()._take(frame)

    def _finish_job(self, number):
        if self._is_over or number in self._answered or number not in self._in_hand:
            return
        handled = self._handled
        if self._is_blocked:
            handled.simulation.after(1.0, self._finish_job, number)
            return
        head, arrays = self._in_hand[number]
        fault = handled.fault_on(arrays[0])
        if fault in ("hang", "stubborn"):
            self._in_hand[number] = {**head, "fault": fault}, arrays
        elif fault == "crash":
            self._crash()
        elif fault == "block":
            self._is_blocked = True
            handled.simulation.after(MAX_HANDLER_S, self._report, number)
        else:
            self._answer(head, arrays, fault)

    def _report(self, number):
        fields = {"kind": "blocked", "job": number, "text": "played.py:1 in predict"}
        self._owner.post(partial(self._take, Frame(fields, [])))

    def _crash(self):
        if len(self._in_hand) > 1:
            self._handled.note_suspects(self._in_hand)
        super()._crash()

    def _end(self):
        super()._end()
        if len(self._in_hand) > 1:
            self._handled.note_shared(self._in_hand)


class _PartsProcess(_Process):
    """A process whose method is a generator; without a loop it makes one part after the other."""

    def __init__(self, handled):
        super().__init__(handled)
        self._open: dict[int, list[Any]] = {}
        """The images of calls, and how many parts they have, by the jobs' numbers."""
        self._asked: dict[int, int] = {}
        """The steps that are asked for, of each; the first ones in turn."""
        self._in_step: set[int] = set()

    def send(self, head, arrays=()):
        number = head["job"]
        if self._is_over:
            return
        if head["kind"] == "drop":
            self._drop(number)
            return
        if head["kind"] == "job":
            self._handled.note_begun(head, arrays)
            self._open[number] = [arrays[0], 0]
        elif number not in self._open:  # it has ended before
            return
        self._jobs.append(number)
        self._asked[number] = self._asked.get(number, 0) + 1
        most = AHEAD if not self._handled.signature.is_async else 1000
        is_few = sum(self._asked.values()) <= most and self._asked[number] <= AHEAD
        self._handled.simulation.require(is_few, "too many parts are asked for ahead")
        self._work()

    def _drop(self, number):
        is_async = self._handled.signature.is_async
        if number in self._in_step and not is_async:  # it reads that behind its step
            self._handled.simulation.after(1e-4, self._drop, number)
            return
        self._jobs = deque(each for each in self._jobs if each != number)
        self._in_step.discard(number)
        if self._open.pop(number, None) is not None and self._asked.pop(number, 0):
            self._say(number, "failed")
        self._work()

    def _work(self):
        """Begin a step, or of each generator one."""
        for number in [*dict.fromkeys(self._jobs)]:
            if number in self._in_step or (self._in_step and not self._handled.signature.is_async):
                continue
            self._jobs.remove(number)
            self._in_step.add(number)
            handled = self._handled
            seconds = handled.random.choice((1e-4, 1e-3, 0.05)) * handled.random.random()
            handled.simulation.after(seconds, self._make_part, number, self._open[number])

    def _make_part(self, number, call):
        """Make a part, or come to the end."""
        if self._is_over or number not in self._open or self._open[number] is not call:
            return
        images, num_parts = call
        fault = self._handled.fault_on(images)
        if fault == "hang":
            return
        if fault == "crash":
            self._crash()
            return
        self._in_step.discard(number)
        is_end = fault or num_parts == self._handled.num_parts_of(images[0].tobytes())
        if fault == "nonsense":
            self._say(number + 1000, "part")
        elif is_end:
            self._jobs = deque(each for each in self._jobs if each != number)
            del self._open[number], self._asked[number]
            self._say(number, fault or "end")
        else:
            call[1] += 1
            self._asked[number] -= 1
            self._say(number, "part", images, num_parts)
        self._work()

    def _say(self, number, kind, images=None, part=0):
        fields = {"kind": kind, "job": number, "text": "no", "error": "InvalidRequest"}
        outputs = []
        if images is not None:
            fields |= {"state": True}
            outputs = [_rows(images) + 1000 * part]
        self._owner.post(partial(self._take_part, Frame(fields, outputs), images))

    def _take_part(self, frame, images):
        if images is not None and not self._is_over:
            self._handled.note_part(images)
        self._take(frame)

    def _crash(self):
        for number in self._asked:  # one of these may be at fault, the others begin once more
            self._handled.note_shared([number])
        super()._crash()

    def kill(self):
        for number in self._asked:
            self._handled.note_shared([number])
        super().kill()

    close = kill


class _Engine:
    """The model between the handler's methods."""

    device, max_concurrent_runs, tensors = "cpu", None, _TENSORS

    def run(self, feeds):
        if any(image[8] == 0xFF for image in feeds["images"]):  # no method before has seen it
            raise RuntimeError("poison")
        return [_rows(feeds["images"])]

    def stoppable(self, *, is_alone=False):
        return self.run, lambda: None


class Handled:
    """The model, its processes and its callers."""

    tensors = _TENSORS
    line, files = "played", ()

    def __init__(self, simulation):
        """Serve it."""
        self.simulation = simulation
        self.random = random = Random(f"handled {simulation.seed}")
        methods = random.choice(_METHODS)
        in_parts = methods == ("predict",) and random.random() < 0.5
        batching = random.random() < 0.6 and not in_parts
        if in_parts:
            self.tensors = replace(_TENSORS, in_parts=True)
        self._parted: set[bytes] = set()
        """The images of calls that have had a part."""
        self.has_states = methods == ("preprocess", "postprocess")
        images, rows = Array("uint8", (100,)), Array("float32", (10,))
        self.signature = HandlerSignature(
            name="Played",
            inputs=None if methods == ("postprocess",) else {"images": images},
            outputs=None if methods == ("preprocess",) else {"probabilities": rows},
            methods=methods,
            batching=batching,
            in_parts=in_parts,
            is_async=random.random() < 0.5,
            max_concurrency=random.choice((2, 8, 64)),
        )
        self.fault_share = random.choice((0.0, 0.02, 0.1))
        self._faults = Counter()
        self._fault_s = -_REST_S
        self._begun = {}
        """The calls of each job, by its number."""
        self._begun_s = {}
        self._suspects: set[bytes] = set()
        """The images of calls that a process has crashed on, among others."""
        self._alone: set[bytes] = set()
        """The images that went to a process in a call that was alone."""
        manifest = replace(simulation.manifest, name=NAME, version="1", signature=None)
        model = with_handler(LoadedModel(_Engine(), manifest, "fp32", 64), self)
        if methods == ("predict",):
            model = replace(model, engine=None, inside=None)
        simulation.router.change(NAME, ModelVersions(NAME, {"1": model}, "1", {}, None))
        how = f"batching {batching}, parts {in_parts}, async {self.signature.is_async}"
        simulation.tell(f"{NAME} has {' and '.join(methods)}, {how}")

    # As a handler that was loaded

    def take_first(self):
        return ()

    def close(self): ...

    def launch(self, post, done):
        """Start a process after a while, unless that fails."""
        seconds = self.random.choice((0.01, 1.0)) * self.random.random()
        outcome = Unavailable("no process") if self._draw("start") else None
        self.simulation.after(seconds, self._started, post, done, outcome)

    def _started(self, post, done, outcome):
        kind = _LoopProcess if self.signature.is_async else _Process
        if self.signature.in_parts:
            kind = _PartsProcess
        post(partial(done, outcome or kind(self)))

    # Its processes

    def _draw(self, fault):
        is_bad = self.random.random() < self.fault_share and not self.simulation.is_calm
        if is_bad:
            self._faults[fault] += 1
            self._fault_s = self.simulation.now_s
            self.simulation.tell(f"{NAME}: {fault}")
        return is_bad

    def fault_on(self, images):
        """Draw what happens to a step; poisoned images fail it always."""
        return "failed" if any(image[8] == 0xFF for image in images) else self.draw_fault()

    def draw_fault(self):
        is_async = self.signature.is_async and not self.signature.in_parts
        fault = self.random.choice(_ASYNC_FAULTS if is_async else _FAULTS)
        return fault if self._draw(fault) else ""

    def outputs(self, phase, arrays):
        return arrays if phase != "predict" else [_rows(arrays[0])]

    def note_begun(self, head, arrays):
        """Check that calls in a job are wanted still, and each was not begun alone before."""
        simulation = self.simulation
        if head["phase"] == "postprocess":
            is_whole = len(arrays[0]) == head["rows"]
            simulation.require(is_whole, "a job has other rows than its calls")
            since_s = simulation.turn_s
            against = [
                invariants.reason_against(simulation, client, call, since_s)
                for _, client, call in self._begun.get(head["job"], ())
            ]
            is_wanted = not against or None in against
            simulation.require(is_wanted, f"a job is for nobody, its call {against[:1]}")
            return
        images = [row.tobytes() for row in arrays[0]]
        known = [(image, *simulation.calls[image[:8]]) for image in images]
        self._begun[head["job"]] = known
        self._begun_s[head["job"]] = simulation.now_s
        numbers = {call.number for _, _, call in known}
        simulation.require(len(numbers) == 1 or self.signature.batching, "calls share a job")
        for image, client, call in known:
            invariants.check_run(simulation, client, call, simulation.turn_s)
            is_new = image not in self._alone
            simulation.require(is_new, f"call {call.number} was begun alone, and is begun again")
            is_new = image not in self._parted
            simulation.require(is_new, f"call {call.number} has had parts, and is begun again")
        if len(numbers) == 1:
            self._alone |= {*images}

    def note_part(self, images):
        """Note that a call has a part."""
        self._parted |= {image.tobytes() for image in images}

    @staticmethod
    def num_parts_of(image):
        """Return how many parts the answer to an image has."""
        return image[7] % 13

    def num_parts(self, call):
        return self.num_parts_of(call.messages[0][0])

    def judge_part(self, call):
        """Check that a part is the next one of its call."""
        number, (rows, _) = len(call.answers), call.answers[-1]
        is_due = number <= self.num_parts(call)
        self.simulation.require(is_due, f"call {call.number} has a part too many")
        images = np.array([[*image] for image in call.messages[0]], np.uint8)
        expected = _rows(images) + 1000 * (number - 1)
        is_right = rows == [row.tobytes() for row in expected]
        self.simulation.require(is_right, f"call {call.number} has a wrong part {number}")

    def note_lost(self, states):
        """Note whose state is lost: these calls are begun again."""
        for images in states.values():
            self._alone -= {*images}

    def note_in_hand(self, jobs):
        """Check that a process has no more jobs than the handler says, and a suspect no others."""
        number, most = len(jobs), self.signature.max_concurrency
        self.simulation.require(number <= most, f"a process has {number} jobs, of {most}")
        suspects = [job for job in jobs if self._suspects.intersection(self._images_of(job))]
        is_alone = number == 1 or not suspects
        self.simulation.require(is_alone, "a suspect has others beside it in its process")

    def note_shared(self, jobs):
        """Note that a process has ended on several jobs: each call is begun once more, alone."""
        for job in jobs:
            self._alone.difference_update(self._images_of(job))

    def note_suspects(self, jobs):
        """Note that one of several jobs has ended its process."""
        for job in jobs:
            self._suspects |= self._images_of(job)

    def note_cancelled(self, job):
        """Check that nobody waits for a job that is cancelled, unless it took too long."""
        simulation, since_s = self.simulation, self.simulation.turn_s
        if job not in self._begun:  # its first method has the model's outputs
            return
        begun_s = self._begun_s[job]
        is_wanted = [
            invariants.reason_against(simulation, client, call, since_s) is None
            for _, client, call in self._begun.get(job, ())
        ]
        is_too_long = since_s - begun_s > MAX_HANDLER_S
        simulation.require(is_too_long or not all(is_wanted), "a call is cancelled that is wanted")

    def _images_of(self, job):
        return {image for image, _, _ in self._begun.get(job, ())}

    # Its callers

    def begin(self):
        """Have some callers come."""
        simulation = self.simulation
        for _ in range(_CALLERS):
            caller = Polite(simulation, len(simulation.clients), self.random, is_quick=True)
            caller.model = NAME
            simulation.clients.append(caller)
            at_s = 1.0
            while at_s < _CALLERS_S - 1.0:
                simulation.after(at_s, self._call, caller)
                at_s += self.random.choice((0.0001, 0.01, 1.0))
            simulation.after(_CALLERS_S, caller.leave, self.random.choice(("close", "reset")))

    def _call(self, caller):
        if not caller.is_over and caller.engine.is_established:
            path = PARTS if self.signature.in_parts else INFER
            call = caller.begin(path, 2, self.random.choice((b"1m", b"20m", b"1S", b"50S", None)))
            caller.flush()
            if call is not None and self.random.random() < 0.3:
                self.simulation.after(0.05 * self.random.random() ** 3, caller.cancel, call)

    def excuses(self, call):
        """Return whether a fault may have ended a call."""
        return call.model == NAME and self._fault_s > call.sent_s - _REST_S


def _rows(images):
    from tests.simulation.simulation import rows_of

    return rows_of([row.tobytes() for row in images], "1")
