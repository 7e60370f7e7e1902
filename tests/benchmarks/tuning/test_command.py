import json
import re
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import onnx.parser
import pytest

from benchmarks import cli
from benchmarks.loops import Trace
from benchmarks.result_file import Latencies
from benchmarks.tuning import command, trials
from benchmarks.tuning.candidates import Candidate
from benchmarks.tuning.search import Goal, Trial, cells_of
from benchmarks.tuning.trials import rate_of, run_seconds
from serving.model.settings_file import parse_settings

GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N, 3] x) => (float[N, 3] y) { y = Relu(x) }
"""
FEW = [Candidate(), Candidate(threads=1, instances=1, batch=8, delay_s=0.0)]

pytestmark = pytest.mark.process  # the report asks git and nvidia-smi


@pytest.fixture
def model(tmp_path):
    onnx.save(onnx.parser.parse_model(GRAPH), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def tune(model, *options):
    quick = ("--callers", "1,2", "--seconds", "0.02", "--output", str(model.parent / "tuned"))
    return cli.main(["tune", str(model), *quick, *options])


def test_model_is_tuned_and_its_settings_are_written(model, monkeypatch, capsys):
    monkeypatch.setattr(command, "grid", lambda *sizes, **options: FEW)
    (model.parent / "net.config.pbtxt").write_text('name: "net"\n')
    assert tune(model, "--seed", "5") == 0
    shown = capsys.readouterr().out
    assert "For throughput: " in shown
    config = (model.parent / "net.config.pbtxt").read_text()
    assert "seed 5" in config
    assert config.count("\n#  ") == 2  # a line for each number of callers
    assert parse_settings(config.encode()).name == "net"
    assert (model.parent / "net.config.pbtxt.before").read_text() == 'name: "net"\n'
    raw = json.loads((model.parent / "tuned" / "net.json").read_text())
    measured = {(t["callers"], t["candidate"]["batch"], t["num_errors"]) for t in raw["trials"]}
    assert measured == {(callers, batch, 0) for callers in (1, 2) for batch in (None, 8)}
    svg = (model.parent / "tuned" / "net.svg").read_text()
    assert ElementTree.fromstring(svg).tag.endswith("svg")
    assert "Pareto front" in svg


def test_goal_that_nothing_reaches_changes_nothing(model, monkeypatch, capsys):
    monkeypatch.setattr(command, "grid", lambda *sizes, **options: FEW[:1])
    assert tune(model, "--goal", "latency=0.001ms") == 1
    assert "No setting reaches the goal latency=0.001ms" in capsys.readouterr().out
    assert not (model.parent / "net.config.pbtxt").exists()


def test_candidate_that_can_not_be_served_is_named(model, monkeypatch, capsys):
    bad = Candidate(threads=5000, instances=1)
    monkeypatch.setattr(command, "grid", lambda *sizes, **options: [bad])
    assert tune(model) == 2
    errors = capsys.readouterr().err
    assert "not measured: 5000 threads, 1 at once" in errors
    assert "expected 1 to 1024, got '5000'" in errors


@pytest.mark.parametrize(
    ("text", "goal"),
    [("throughput", Goal()), ("latency=10ms", Goal("latency", 0.01)), ("memory", Goal("memory"))],
)
def test_goals_are_read(text, goal):
    assert command.goal(text) == goal
    assert str(goal) == text


@pytest.mark.parametrize("text", ["speed", "latency", "latency=0", "memory=3", "throughput=1"])
def test_other_goals_exit_with_2(model, text, capsys):
    with pytest.raises(SystemExit) as exit_info:
        tune(model, "--goal", text)
    assert exit_info.value.code == 2
    assert "expected" in capsys.readouterr().err


def test_callers_have_a_quarter_of_the_cores_from_four_on():
    assert command.share_cores([0, 1]) == ([0, 1], [1])
    assert command.share_cores([*range(8)]) == ([0, 1, 2, 3, 4, 5], [6, 7])


def trace(num, latency_s, duration_s, num_errors=0):
    latencies_s = np.full(num, latency_s)
    return Trace(generator="python", latencies_s=latencies_s, duration_s=duration_s,
                 num_errors=num_errors, busy=0.1)  # fmt: skip


def test_rate_of_a_short_run_does_not_lose_its_last_batch():
    # Batches of 64 take 0.4 s: in 1 s two end, and the third would have at 1.2 s.
    assert rate_of(trace(128, 0.4, 1.0), 64) == pytest.approx(160)
    assert rate_of(trace(128, 0.4, 1.0, num_errors=32), 64) == pytest.approx(120)
    assert rate_of(trace(5000, 0.001, 1.0), 4) == pytest.approx(5000)


def test_run_is_as_long_as_the_model_needs():
    assert run_seconds(0.1, 0.0001, 1) == 0.1
    assert run_seconds(0.1, 0.01, 1) == pytest.approx(2.0)  # 200 calls
    assert run_seconds(0.1, 0.64, 64) == pytest.approx(200 * 0.01)
    assert run_seconds(0.1, 1.28, 128) == pytest.approx(3 * 1.28)  # three of each caller
    assert run_seconds(0.1, 5.0, 100) == 15.0
    assert run_seconds(0.1, 5.0, 1) == 30.0


class Again:
    """Measures the chosen settings and the defaults again, in turns."""

    def __init__(self, rates):
        self.rates = iter(rates)

    def __call__(self, setting, callers, rows, old, goal, progress):
        assert callers == [4]
        return self

    def measure(self, candidate, stage):
        assert stage.is_last
        return [made_up(candidate, next(self.rates))]


def made_up(candidate, rate):
    return Trial(
        candidate=candidate, callers=4, rows=1, stage=0, seconds=1.0, rows_per_s=rate, p50_s=0.01,
        p99_s=0.01, num_calls=100, num_errors=0, memory_bytes=1, latency=Latencies.of([0.01]),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("found", "again", "is_chosen", "words"),
    [
        ((120, 130), [120, 100] * 5, True, r"Measured again: 1.20 times .* \(1.20 to 1.20\)"),
        ((104, 130), [120, 100] * 5, False, "the worst round of .* is not above their best"),
        ((120, 130), [120, 100] * 4 + [90, 100], False, r"measured again, .* \(0.90 to 1.20\)"),
    ],
)
def test_settings_are_chosen_only_if_they_are_sure(found, again, is_chosen, words, monkeypatch):
    usual, other = Candidate(), Candidate(threads=2, instances=1)
    finals = [*(made_up(usual, r) for r in (100, 105)), *(made_up(other, r) for r in found)]
    monkeypatch.setattr(trials, "Trials", Again(again))
    chosen = next(cell for cell in cells_of(finals) if cell.candidate == other)
    options = SimpleNamespace(goal=Goal(), rows=1)
    cell, said = command._checked(options, None, finals, chosen, "")
    assert (cell.candidate == other) is is_chosen
    assert re.search(words, said)


def test_minutes_are_said_before_a_search_begins(model, monkeypatch, capsys):
    monkeypatch.setattr(command, "grid", lambda *sizes, **options: FEW)
    assert tune(model) == 0
    assert "It takes some 1 min" in capsys.readouterr().out
