"""The life of a version goes by its table, and nothing else changes it."""

import pytest

from serving.errors import CorruptModel
from serving.versions import version as life
from serving.versions.version import State, Version

MODEL = object()


class Steps:
    """Loads at once, but for a step that fails."""

    loaded = MODEL

    def __init__(self, failing=None, error=None):
        self.done = []
        self._failing, self._error = failing, error

    @property
    def steps(self):
        return tuple(lambda name=name: self._do(name) for name in STEPS)

    def _do(self, name):
        if name == self._failing:
            raise self._error
        self.done.append(name)


STEPS = ("read", "judge", "build", "check")


def version_in(state):
    """A version in a state, by the way that leads there."""
    version = Version("3", frozenset())
    if state is State.REFUSED:
        version.refuse(CorruptModel("it is damaged"))
    elif state is State.GONE:
        version.end()
    elif state in LOADING:
        with pytest.raises(CorruptModel):
            version.load(Steps(STEPS[LOADING.index(state) + 1], CorruptModel("stop here")))
        version.state, version.error = state, None
    elif state is not State.FOUND:
        version.load(Steps())
        for move in {State.SERVING: ["serve"], State.LEAVING: ["serve", "leave"]}.get(state, []):
            getattr(version, move)()
    return version


LOADING = (State.READ, State.JUDGED, State.BUILT)
MOVES = {
    "serve": {State.CHECKED: State.SERVING, State.SERVING: State.SERVING},
    "leave": {State.SERVING: State.LEAVING},
    "end": {
        State.FOUND: State.GONE, State.CHECKED: State.GONE, State.LEAVING: State.GONE,
        State.REFUSED: State.GONE,
    },
    "refuse": dict.fromkeys([State.FOUND, *LOADING, State.CHECKED], State.REFUSED),
    "retry": {each: each for each in State} | {State.REFUSED: State.FOUND},
}  # fmt: skip


@pytest.mark.parametrize("state", State)
@pytest.mark.parametrize("move", MOVES)
def test_moves_are_those_of_the_table(move, state):
    version = version_in(state)
    arguments = [CorruptModel("it is damaged")] if move == "refuse" else []
    if state not in MOVES[move]:
        with pytest.raises(ValueError, match=rf"version 3: {state.name} can't be "):
            getattr(version, move)(*arguments)
        assert version.state is state
        return
    getattr(version, move)(*arguments)
    assert version.state is MOVES[move][state]


def test_table_of_the_page_is_the_table():
    rows = {each: line for line in life.__doc__.splitlines() for each in State
            if line.startswith(f"    {each.name} ") and "──▶" not in line}  # fmt: skip
    assert [*rows] == [*State]


def test_load_goes_through_the_states_in_their_order(monkeypatch):
    version, seen = Version("3", frozenset()), []
    enter = Version._enter

    def note(it, state):
        seen.append(state)
        enter(it, state)

    monkeypatch.setattr(Version, "_enter", note)
    assert version.load(steps := Steps()) is MODEL
    assert steps.done == [*STEPS]
    assert seen == [State.READ, State.JUDGED, State.BUILT, State.CHECKED]


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("error", [CorruptModel("it is damaged"), RuntimeError("a bug")])
def test_step_that_fails_refuses_the_version_with_its_reason(step, error):
    version = Version("3", frozenset())
    with pytest.raises(CorruptModel, match=str(error)):
        version.load(Steps(step, error))
    assert version.state is State.REFUSED
    assert str(error) in version.reason
    assert version.model is None


@pytest.mark.parametrize("state", [each for each in State if each is not State.SERVING])
def test_each_state_but_one_says_why_it_is_not_served(state):
    version = version_in(state)
    assert version.reason
    assert version.is_loaded is (state is State.CHECKED)


def test_reason_of_one_that_nobody_wants_is_that_unless_it_is_refused():
    version = version_in(State.FOUND)
    version.unwanted = "only the newest good version is served: 4"
    assert version.reason == version.unwanted
    version.refuse(CorruptModel("it is damaged"))
    assert version.reason == "it is damaged"
    version.retry()
    assert (version.reason, version.error) == (version.unwanted, None)


def test_one_that_serves_has_no_reason_and_one_that_is_gone_no_model():
    version = version_in(State.SERVING)
    assert (version.reason, version.model) == ("", MODEL)
    version.leave()
    assert version.model is MODEL, "its calls are not answered yet"
    version.end()
    assert version.model is None
