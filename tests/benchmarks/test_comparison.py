"""The comparison: like with like, in parts that are kept until all are measured."""

from types import SimpleNamespace

import pytest

from benchmarks import comparison, runner
from benchmarks.clients import CLIENTS
from benchmarks.comparison import Plan, forget_parts, parts_of
from benchmarks.others import PEERS
from benchmarks.result_file import Results
from benchmarks.targets import OURS, Spec, protocol_of
from tests.benchmarks.made_up import sample


@pytest.fixture
def measured(monkeypatch):
    """The parts that were measured, in order; nothing is started."""
    parts = []

    def run(suite, setting, progress):
        if suite.model == "fails":
            raise KeyboardInterrupt
        parts.append((suite.model, suite.scenarios[0], suite.specs[0]))
        found = Results(suite=suite.name, date="2026-01-01", environment={}, settings={})
        found.samples += [sample(Spec(target="h2-infer"), "ClosedLoop", model=suite.model)]
        return found

    monkeypatch.setattr(runner, "run", run)
    monkeypatch.setattr(runner, "commit", lambda: "1234567")
    monkeypatch.setattr(comparison, "prepare", lambda plan, say: ({}, {}))
    monkeypatch.setattr(comparison, "workload_of", lambda file, seed: None)
    return parts


def compared(tmp_path, models, **changes):
    plan = Plan(models=models, addresses={}, parts=tmp_path, **changes)
    return plan, lambda: comparison.run(plan, [0], SimpleNamespace(cores=[0]), lambda step: None)


def test_comparison_that_was_ended_goes_on(tmp_path, measured):
    one = {"peers": (), "clients": ()}
    _, run = compared(tmp_path, ["digits", "fails"], **one)
    with pytest.raises(KeyboardInterrupt):
        run()
    assert [each[0] for each in measured] == ["digits"] * 3  # its protocols
    plan, run = compared(tmp_path, ["digits", "cnn"], **one)
    found = run()
    names = [(each[0], each[1]) for each in measured[3:]]
    assert names == [
        ("cnn", "ClosedLoop"), ("cnn", "ClosedLoop"), ("digits", "Load"), ("digits", "Overload"),
    ]  # fmt: skip
    assert len(found.samples) == len(measured) == 7
    assert found.settings == {"seed": 0}
    forget_parts(plan)
    run()
    assert len(measured) == 14


def test_part_of_other_settings_is_measured_again(tmp_path, measured):
    one = {"peers": (), "clients": ()}
    compared(tmp_path, ["digits"], **one)[1]()
    number = len(measured)
    compared(tmp_path, ["digits"], seed=1, **one)[1]()
    (tmp_path / "digits-grpc.json").write_text("{")
    compared(tmp_path, ["digits"], seed=1, **one)[1]()
    assert len(measured) == 2 * number + 1


def test_parts_are_like_with_like():
    parts = {each.name: each.suite for each in parts_of(Plan(addresses={"kserve": "h:1"}))}
    protocols = {
        name: {protocol_of(spec.target) for spec in suite.specs} for name, suite in parts.items()
    }
    assert protocols.pop("digits-load") == {"gRPC", "JSON"}
    assert protocols.pop("digits-clients") == {"gRPC", "bytes"}
    assert all(len(found) == 1 for found in protocols.values())
    assert "cnn-json" not in parts  # 27,648 numbers would time parsers
    assert all(suite.specs[0].target in OURS.values() for suite in parts.values())
    measured = {spec.target for suite in parts.values() for spec in suite.specs}
    assert measured == {*PEERS, *OURS.values(), "kserve"}
    for client in CLIENTS:
        both = [s.target for s in parts["digits-clients"].specs if s.client == client]
        assert both in (["h2-infer", "triton"], ["http-binary", "triton-bytes"])
    shapes = {(cell.callers, cell.connections) for cell in parts["digits-grpc"].cells()}
    assert shapes == {(1, 1), (64, 8), (64, 64), (512, 64)}
    assert {spec.target for spec in parts["digits-overload"].specs} == {"h2-infer", "triton"}


def test_environment_that_fails_leaves_out_its_servers_and_clients(tmp_path, monkeypatch, measured):
    failed = {"mosec": "no wheel", "tritonclient": "no index"}
    monkeypatch.setattr(comparison, "prepare", lambda plan, say: (failed, {}))
    found = compared(tmp_path, ["digits"])[1]()
    reasons = {(skip.spec.target, skip.spec.client): skip.reason for skip in found.skips}
    assert reasons["mosec", ""] == reasons["mosec-msgpack", ""] == "no wheel"
    assert reasons["triton", "tritonclient"] == "no index"
    assert ("triton", "") not in reasons
