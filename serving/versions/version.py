"""The life of one version, from the moment that its files are seen until its last call is answered.

                                                         ┌──────── other files, another try ─────┐
                                                         ▼                                       │
    FOUND ──▶ READ ──▶ JUDGED ──▶ BUILT ──▶ CHECKED    FOUND ◀──────────────────────────── REFUSED
      └─────────┴─────────┴─────────┴──────────┼───▶ REFUSED: a step fails, or it is a misfit
                                               └───▶ SERVING ──▶ LEAVING ──▶ GONE

    state     entered by                       callers get meanwhile     ends with
    FOUND     a look sees its files            a refusal: why it is not  `read`, if it is wanted;
                                               wanted, or not loaded     its files go
    READ      its files are as its manifest    a refusal: it is loading  a verdict on its rows
              says
    JUDGED    a child has tried it, and its    likewise                  a session of these bytes
              rows are proved apart, or not
    BUILT     there is a session               likewise                  right answers
    CHECKED   golden samples are answered      a refusal: it is loaded   a look that chooses it, or
              rightly, or drawn rows are run                             finds that it does not fit
    SERVING   a look chooses it                answers                   a look that does not
    LEAVING   a look does not choose it        answers, of calls that    the last answer
              any more                         it had accepted; else a
                                               refusal
    GONE      its last call is answered, or    a refusal                 –
              it goes before it has served
    REFUSED   a step fails                     a refusal: the reason     other files; another try

A version that is not run for a while since its runs have ended processes, one whose handler rests,
and a server that drains are conditions of SERVING, not states. The methods are the only way to
change the state, and refuse a change that is not drawn here. They belong to the thread that looks
at the model: there is one at a time.
"""

from collections.abc import Callable
from enum import Enum, auto
from typing import Protocol

from serving.errors import CorruptModel, ServingError
from serving.model.loaded import LoadedModel
from serving.versions.files import Fingerprint


class State(Enum):
    """Where a version is in its life."""

    FOUND = auto()
    READ = auto()
    JUDGED = auto()
    BUILT = auto()
    CHECKED = auto()
    SERVING = auto()
    LEAVING = auto()
    GONE = auto()
    REFUSED = auto()


_LOADING = State.READ, State.JUDGED, State.BUILT, State.CHECKED
_NEXT = {
    State.FOUND: {State.READ, State.REFUSED, State.GONE},
    State.READ: {State.JUDGED, State.REFUSED},
    State.JUDGED: {State.BUILT, State.REFUSED},
    State.BUILT: {State.CHECKED, State.REFUSED},
    State.CHECKED: {State.SERVING, State.REFUSED, State.GONE},
    State.SERVING: {State.LEAVING},
    State.LEAVING: {State.GONE},
    State.GONE: set[State](),
    State.REFUSED: {State.FOUND, State.GONE},
}
"""The states that may follow each."""
_DOING = {
    State.FOUND: "it is not loaded yet",
    State.READ: "it is loading: its rows are judged",
    State.JUDGED: "it is loading: its session is built",
    State.BUILT: "it is loading: its answers are checked",
    State.CHECKED: "it is loaded, and not served yet",
    State.LEAVING: "it is being replaced",
    State.GONE: "it is gone",
}


class LoadingSteps(Protocol):
    """How a version is loaded: `Loading`, or a handler that is a model by itself."""

    @property
    def steps(self) -> tuple[Callable[[], None], ...]:
        """One for each state from READ to CHECKED."""

    @property
    def loaded(self) -> LoadedModel:
        """The version, behind the last step."""


class Version:
    """One version of a model, with the files that it has now; other files are another one."""

    def __init__(self, number: str, files: Fingerprint) -> None:
        """Find it.

        Args:
            number: such as "3".
            files: the state of its files before any of them is read: more may have come since.
        """
        self.number, self.files = number, files
        self.state = State.FOUND
        self.model: LoadedModel | None = None
        """What serves it, from CHECKED on until it is GONE."""
        self.error: str | None = None
        """Why it is REFUSED; the error itself would keep what its step has read."""
        self.unwanted = ""
        """Why a look does not choose it; empty if one would."""

    @property
    def is_loaded(self) -> bool:
        """Whether it can serve."""
        return self.state in (State.CHECKED, State.SERVING)

    @property
    def reason(self) -> str:
        """Why it is not served, in a sentence for everybody who asks; empty if it is."""
        if self.state is State.SERVING:
            return ""
        if self.error is not None:
            return self.error
        return self.unwanted or _DOING[self.state]

    def load(self, loading: LoadingSteps) -> LoadedModel:
        """Read, judge, build and check it.

        Raises:
            ServingError: a step failed: it is REFUSED.
        """
        try:
            for state, step in zip(_LOADING, loading.steps, strict=True):
                step()
                self._enter(state)
        except ServingError as err:
            self.refuse(err)
            raise
        except Exception as err:  # a bug, or a library's: it is of this version alone
            error = CorruptModel(f"version {self.number}: {type(err).__name__}: {err}")
            self.refuse(error)
            raise error from err
        self.model = loading.loaded
        return self.model

    def refuse(self, error: ServingError) -> None:
        """Refuse it, until its files change or another try is asked for."""
        self._enter(State.REFUSED)
        self.error, self.model = str(error), None

    def retry(self) -> None:
        """Let the next look try it again, if it was refused."""
        if self.state is State.REFUSED:
            self._enter(State.FOUND)
            self.error = None

    def serve(self) -> None:
        """Serve it from now on, if it does not yet."""
        if self.state is not State.SERVING:
            self._enter(State.SERVING)

    def leave(self) -> None:
        """Take no new call."""
        self._enter(State.LEAVING)

    def end(self) -> None:
        """Forget what served it: its last call is answered, or none has come."""
        self._enter(State.GONE)
        self.model = None

    def _enter(self, state: State) -> None:
        if state not in _NEXT[self.state]:
            raise ValueError(f"version {self.number}: {self.state.name} can't be {state.name}")
        self.state = state

    def __repr__(self) -> str:
        """Return text such as "<version 3 REFUSED>"."""
        return f"<version {self.number} {self.state.name}>"
