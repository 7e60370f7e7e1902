"""A verdict: what it says of a proof and its check, and what becomes of their runs."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from serving.model import file_trial, judging
from serving.model.file_trial import File, Step
from serving.model.onnx_runtime import ON_CPU, new_session, runtime
from serving.model.verdicts import Verdict
from serving.proof import Mixes
from serving.proof.check import Comparison, NotRun
from serving.proof.onnx_file import parse_model
from tests.serving.model.graphs import model, node, two_layers, value

MIXES = Verdict("it mixes")


@pytest.fixture
def limited(monkeypatch):
    """Have steps end as a test says; returns how, the options of their runs, and their limits."""
    found = SimpleNamespace(outcomes=[], options=SimpleNamespace(terminate=False), asked=[])

    def within(limit_s, work, on_slow):
        on_slow()
        found.asked.append(limit_s)
        outcome = found.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    monkeypatch.setattr(judging, "within", within)
    runtime = SimpleNamespace(RunOptions=lambda: found.options)
    monkeypatch.setattr(judging, "runtime", lambda: runtime)
    return found


def judged():
    made = two_layers()
    return judging.within_limits("net version 3", made, b"", {}, None, 60.0, 10.0)


SLOW = "model net version 3: {} goes on after 2 s; the limit is {} s of processor time"
PROOF = SLOW.format("the proof that rows are independent", 60)
CHECK = SLOW.format("the check by a run", 10)


@pytest.mark.parametrize(
    ("outcomes", "verdict", "limits_s", "lines"),
    [
        ([MIXES], MIXES, [60.0], [PROOF]),
        ([object(), Verdict(None)], Verdict(None), [60.0, 10.0], [PROOF, CHECK]),
    ],
)
def test_proof_and_check_have_a_limit_each_and_leave_no_run(
    outcomes, verdict, limits_s, lines, limited, caplog
):
    caplog.set_level("INFO", "serving")
    limited.outcomes += outcomes
    assert judged() == verdict
    assert limited.asked == limits_s
    assert caplog.messages == lines
    assert limited.options.terminate


@pytest.mark.parametrize("before", [[], [object()]])
def test_step_that_takes_too_long_leaves_no_run(before, limited, caplog):
    caplog.set_level("INFO", "serving.model.judging")
    limited.outcomes += [*before, TimeoutError("is not ready")]
    with pytest.raises(TimeoutError, match=r"^the check by a run is not ready$"):
        judged()
    assert limited.options.terminate
    assert caplog.messages == ["model net version 3: the check by a run is not ready"]


class Check:
    """A check that ends so."""

    def __init__(self, outcome):
        self.outcome = outcome

    def run(self):
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


COMPARED = "checked by 9 runs: 3 tensors"


@pytest.mark.parametrize(
    ("outcome", "verdict", "lines"),
    [
        (Comparison(3, 0, 9), Verdict(None), [COMPARED]),
        (Comparison(3, 2, 9), Verdict(None, "2 of 5 tensors not checked by a run"), [COMPARED]),
        (Mixes("y: it mixes"), Verdict("y: it mixes"), []),
        (NotRun(),
         Verdict("row independence is proved, but no drawn input can be run to check it"), []),
        (IndexError("7"), Verdict("the check by a run failed: IndexError"),
         ["the check by a run failed"]),
    ],
)  # fmt: skip
def test_verdict_says_how_a_check_ended(outcome, verdict, lines, caplog):
    caplog.set_level("DEBUG", "serving.model.judging")
    check = Check(outcome)
    assert judging.run(check) == verdict
    assert caplog.messages == lines
    has_trace = [bool(each.exc_info) for each in caplog.records]
    assert has_trace == [isinstance(outcome, IndexError)] * len(lines)


def test_check_that_is_ended_has_no_verdict():
    with pytest.raises(TimeoutError):
        judging.run(Check(TimeoutError()))


def test_samples_are_eight_rows_of_the_only_input():
    one = parse_model(two_layers().SerializeToString())
    rows = np.arange(6).reshape(3, 2)
    found = judging.samples_of(one, rows)
    assert found is not None
    assert found["x"].tolist() == [[0, 1], [2, 3], [4, 5]] * 2 + [[0, 1], [2, 3]]
    assert [*found] == ["x"]
    assert judging.samples_of(one, None) is None
    sides = [value(name, "FP32", ["N", 2]) for name in "ab"]
    two = model([node("Add", ["a", "b"], ["y"])], sides, [value("y", "FP32", ["N", 2])])
    assert judging.samples_of(two, rows) is None


def test_check_runs_the_graph_as_its_file_has_it(tmp_path, monkeypatch):
    """With its weights, and each node in its place."""
    path = tmp_path / "net.onnx"
    onnx.save(two_layers(), path, save_as_external_data=True, location="w", size_threshold=0)
    plain, built = runtime().InferenceSession, []

    def open_session(data, options, **more):
        built.append(options)
        return plain(data, options, **more)

    monkeypatch.setattr(runtime(), "InferenceSession", open_session)
    options, weights = runtime().RunOptions(), {"w": (tmp_path / "w").read_bytes()}
    session = judging.UnchangedSession(weights, options, path.read_bytes())
    (given,) = built
    assert given.graph_optimization_level == runtime().GraphOptimizationLevel.ORT_DISABLE_ALL
    rows = np.ones((2, 4), np.float32)
    (answer,) = session.run(["y"], {"x": rows})
    (wanted,) = new_session(two_layers().SerializeToString()).run(["y"], {"x": rows})
    np.testing.assert_allclose(answer, wanted, rtol=1e-5)
    assert ([each.name for each in session.inputs], [*session.dtypes]) == (["x"], ["y"])
    options.terminate = True
    with pytest.raises(TimeoutError, match="the check by a run was ended"):
        session.run(["y"], {"x": rows})


def test_step_is_noted_before_its_work_begins(tmp_path, monkeypatch):
    """A process that ends leaves the step that has ended it."""
    progress, seen = tmp_path / "progress", []

    def noted(work):
        def call(*args, **options):
            seen.append((work.__name__, Step(progress.read_bytes()[0])))
            return work(*args, **options)

        return call

    trial: Any = file_trial
    monkeypatch.setattr(trial, "parse_model", noted(trial.parse_model))
    monkeypatch.setattr(judging, "within_limits", noted(judging.within_limits))
    monkeypatch.setattr(trial.OnnxEngine, "open", noted(trial.OnnxEngine.open))
    monkeypatch.setattr(trial, "_run_once", noted(trial._run_once))
    onnx = two_layers().SerializeToString()
    file = File("net version 1", onnx, {}, ("digest",), ON_CPU, None, 60.0, 10.0)
    file_trial._steps(file, str(progress), True)
    assert seen == [
        ("parse_model", Step.PARSING), ("within_limits", Step.PROVING), ("open", Step.BUILDING),
        ("_run_once", Step.RUNNING),
    ]  # fmt: skip
