"""Calls that one take has joined, and that go through a handler's stages together.

    stage          entered by                  meanwhile                      left by
    ─────────────  ──────────────────────────  ─────────────────────────────  ─────────────────────
    the entry      `submit`, `add`             room and turns; refused, late  `take`: joined with
                                               or gone as at any entry        calls that are alike
    Decode         begun                       the pool for strangers' files  pixels, or an error
    Method, waits  the stage before, or again  in line: begun before new,     a process that is free
                                               and for the process with its
                                               state
    Method, works  a job for a process,        too long, too much memory:     its outcome, or the
                   beside others if it is      the process is ended; a task   process's end
                   `async def`                 is cancelled: too long, late
                                               or gone
    Method,        some parts of a call that   late, gone: its process drops  `resume`: in line for
    paused         is answered so, of which    the generator; no step, so no  its process
                   its reader has to take one  limit of time
    Run            the stage before            the model's own entry, where   outputs, or an error
                                               this is a caller
    Answer         the last stage                                             the callers' sinks

Behind the entry three rules hold at each stage. `wanted`: a call that is late fails, one whose
caller has left is dropped, and once nobody waits they end; a process that works on them goes on,
and its outcome is dropped. `go_on`: what a stage has made enters the next one. `failed`: of several
calls each begins once more by itself; one gets the error. A state that a process keeps is dropped
at the end.

Of a call that is answered in parts the last method is a generator in its process, and each part is
a job of its own. Some are asked for ahead, so that a part costs no way to the process and back; the
sink gets one at a time, the next one when its reader has taken that, and the end, or an error,
behind all of them. A call with a part never begins once more.
"""

import math
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import Enum, auto
from functools import partial
from typing import Any, Protocol

from serving.batching.run import Group, Owner, Ran, divide, open_calls
from serving.errors import ServingError
from serving.tensors import Array


class Attempt(Enum):
    """Why calls go through the stages."""

    FIRST = auto()
    AGAIN = auto()
    """The process that had them, or their state, has ended on others."""
    ALONE = auto()
    """A process has ended on this call and others: it is a suspect, of which one goes at a time."""


class Stage(Protocol):
    """A step of joined calls: they leave it by `go_on` or `failed`, later than they enter."""

    def enter(self, joined: "Joined", arrays: Sequence[Array]) -> None:
        """Take calls, and what the stage before has made of them."""


class Line(Protocol):
    """A `Pipeline`, as its stages and runners see it."""

    owner: Owner
    """The thread that all is called on."""

    @property
    def stages(self) -> Sequence[Stage]:
        """In their order."""

    def end_late(self, groups: list[Group]) -> None:
        """Fail calls whose deadline has passed."""

    def fail_joined(
        self, joined: "Joined", error: ServingError, attempt: Attempt, num_suspects: int
    ) -> None:
        """Fail a call; of several, begin each once more, alone."""

    def end(self, joined: "Joined") -> None:
        """Forget calls that have had their outcomes, or that nobody waits for."""

    def schedule(self) -> None:
        """Have work handed out soon."""

    def note_start(self) -> None:
        """Take note that a process has started, or could not."""

    def note_end(self, start_s: float) -> None:
        """Take note that a process has ended; another one takes so long to start."""


class Joined:
    """Calls that go on together: behind the entry what a connection is before it.

    For the model's entry it is a `Caller` of one call, which is there as long as somebody waits,
    and the `Sink` of its outcome.
    """

    __slots__ = (
        "ahead",
        "attempt",
        "begun_s",
        "behind",
        "calls",
        "depth",
        "is_in_line",
        "is_over",
        "is_taken",
        "line",
        "members",
        "num_asked",
        "num_calls",
        "num_parts",
        "num_rows",
        "number",
        "options",
        "part_bytes",
        "part_s",
        "queues",
        "stage",
        "started_s",
        "state_at",
        "times",
    )  # fmt: skip

    address = ""
    gave_up_s = -math.inf

    def __init__(
        self,
        line: Line,
        number: int,
        calls: list[Group],
        options: Mapping[str, Any],
        attempt: Attempt,
    ) -> None:
        """Join calls; `go_on` begins.

        Args:
            line: the stages.
            number: the one that a process knows them by.
            calls: those of one group, or of several.
            options: keyword arguments that the handler names, the same for all of them.
            attempt: why they begin.
        """
        self.line, self.number, self.options, self.attempt = line, number, options, attempt
        self.members = self.calls = calls
        """All that have begun, in the order of their rows, and those that nobody has given up."""
        self.num_calls = sum([len(group.streams) for group in calls])
        self.num_rows = sum([group.num_rows for group in calls])
        self.depth = max([getattr(group.encoder, "depth", 0) for group in calls])
        """How many handlers have called one another for them."""
        self.stage = -1
        """The place of the stage that they are in."""
        self.num_parts = 0
        """Parts of the answer that have come, of a call that is answered in parts."""
        self.ahead: deque[Sequence[Array]] = deque()
        """Those that the sink does not have: its reader takes the one before."""
        self.is_taken = True
        """Whether the reader has taken all that the sink has."""
        self.behind: Callable[[], None] | None = None
        """How the call ends, behind the parts that its reader has to take."""
        self.num_asked = 0
        """Outcomes that come of its process: one, or one for each part that is to be made."""
        self.is_in_line = False
        """Whether it waits for its process to make a part."""
        self.part_s = 0.0
        """When the last one came."""
        self.part_bytes = 0
        """How large it was."""
        self.is_over = False
        self.state_at: Any = None
        """The `Slot` of the process that has their state."""
        self.begun_s = math.inf
        """Since when other processes work on them: an outcome will come; infinite without."""
        self.queues: dict[Any, Any] = {}
        self.started_s = 0.0
        """When the first work began."""
        self.times: list[tuple[str, float, float]] = []
        """Each stage's name, start and end."""

    # The rules

    def go_on(self, arrays: Sequence[Array]) -> None:
        """Enter the next stage; `arrays` is what this one has made."""
        self.stage += 1
        self.line.stages[self.stage].enter(self, arrays)

    def resume(self) -> None:
        """Go on with the answer; the sink's reader has taken the last part."""
        if not self.is_over and self.wanted(self.line.owner.clock()):
            self.is_taken = True
            stage: Any = self.line.stages[self.stage]
            stage.resume(self)
            self.line.schedule()

    def failed(
        self, error: ServingError, attempt: Attempt = Attempt.FIRST, num_suspects: int = 1
    ) -> None:
        """Leave a stage without a result; of several calls each begins once more.

        Args:
            error: for the caller.
            attempt: why calls begin once more.
            num_suspects: how many calls the process has worked on that has ended.
        """
        fail = partial(self.line.fail_joined, self, error, attempt, num_suspects)
        if self.ahead:
            self.behind = fail
        else:
            fail()

    @property
    def num_ahead(self) -> int:
        """The parts that are asked for, or that the reader has to take."""
        return self.num_asked + len(self.ahead) + (not self.is_taken)

    def wanted(self, now_s: float) -> bool:
        """Return whether somebody waits; if nobody does, they end, unless an outcome will come."""
        for group in self.calls:
            there = group.caller.streams.__contains__
            if group.deadline_s <= now_s or not all(map(there, group.streams)):
                break
        else:
            if self.calls:
                return True
        if self.calls is self.members:  # from now on each by itself
            self.calls = self.members = [call for group in self.members for call in group.calls()]
        self.calls, late = divide(open_calls(self.calls), now_s)
        self.line.end_late(late)
        if not self.calls and self.begun_s == math.inf:
            self.line.end(self)
        return bool(self.calls)

    def begin_work(self, now_s: float) -> None:
        """Note that another process works on them now."""
        if self.begun_s == math.inf:  # else it is to make parts already
            self.begun_s = now_s
        if not self.started_s:
            self.started_s = now_s

    # As a caller

    @property
    def streams(self) -> "Joined":
        """Its calls: there is one, as long as somebody waits."""
        return self

    def metadata(self, stream: object) -> Mapping[str, str]:
        """Return no metadata: the model between the methods gets none."""
        return {}

    def __contains__(self, stream: object) -> bool:
        return any(group.open_calls() is not None for group in self.calls)

    @property
    def deadline_s(self) -> float:
        """When the last of the calls is late."""
        late_s = [max(group.deadlines_s or (group.deadline_s,)) for group in self.calls]
        return max(late_s, default=-math.inf)

    # As the sink of the model's run

    def answer(self, group: Group, responses: Sequence[Any], run: Ran) -> None:
        """Go on with the outputs."""
        if responses and not self.is_over:
            self.line.schedule()
            self.times.append(("run", run[0], run[1]))
            if self.wanted(self.line.owner.clock()):
                outputs, _ = responses[0]
                self.go_on(outputs)

    def fail(self, group: Group, error: ServingError) -> None:
        """Leave the stage without them."""
        if not self.is_over:
            self.failed(error)
