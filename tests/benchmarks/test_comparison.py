"""The comparison of several models: one after the other, each kept until all are measured."""

from types import SimpleNamespace

import pytest

from benchmarks import comparison, runner
from benchmarks.comparison import Plan, forget_parts
from benchmarks.result_file import Results
from benchmarks.targets import Spec
from tests.benchmarks.made_up import sample


@pytest.fixture
def measured(monkeypatch):
    """The models that were measured, in order; nothing is started."""
    models = []

    def run(suite, setting, progress):
        if suite.model == "fails":
            raise KeyboardInterrupt
        models.append(suite.model)
        found = Results(suite=suite.name, date="2026-01-01", environment={}, settings={})
        found.samples += [sample(Spec(target="h2-infer"), "ClosedLoop", model=suite.model)]
        return found

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(runner, "commit", lambda: "1234567")
    monkeypatch.setattr(comparison, "prepare", lambda plan, say: ({}, {}))
    monkeypatch.setattr(comparison, "workload_of", lambda file, seed: None)
    return models


def compared(tmp_path, models, seed=0):
    plan = Plan(models=models, addresses={}, seed=seed, parts=tmp_path)
    return plan, lambda: comparison.run(plan, [0], SimpleNamespace(cores=[0]), lambda step: None)


def test_comparison_that_was_ended_goes_on(tmp_path, measured):
    _, run = compared(tmp_path, ["digits", "fails"])
    with pytest.raises(KeyboardInterrupt):
        run()
    plan, run = compared(tmp_path, ["digits", "cnn"])
    found = run()
    assert measured == ["digits", "cnn"]
    assert [each.model for each in found.samples] == ["digits", "cnn"]
    assert found.settings == {"base": comparison.BASE, "seed": 0}
    forget_parts(plan)
    run()
    assert measured == ["digits", "cnn", "digits", "cnn"]


def test_part_of_other_settings_is_measured_again(tmp_path, measured):
    compared(tmp_path, ["digits"])[1]()
    compared(tmp_path, ["digits"], seed=1)[1]()
    (tmp_path / "digits.json").write_text("{")
    compared(tmp_path, ["digits"], seed=1)[1]()
    assert measured == ["digits"] * 3
