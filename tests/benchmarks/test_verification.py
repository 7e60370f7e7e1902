"""A verification without a GPU: its rehearsal, and what becomes of steps that fail."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.report.page import tables
from benchmarks.run import result_file
from benchmarks.run.suites import Suite, specs
from benchmarks.targets.target import NotMeasured, Spec
from benchmarks.verification.plan import Plan, plan_of
from benchmarks.verification.steps import has_failed, verify
from benchmarks.verification.training import call
from tests.benchmarks.patience import SHORT_S


def plan(device: str, folder: Path, data_dir: Path | None = None) -> Plan:
    return replace(plan_of(device, folder / "r.json", data_dir), work=folder / "work")


@pytest.mark.full_mnist
@pytest.mark.usefixtures("mnist")
@pytest.mark.timeout(400)
def test_rehearsal_takes_every_step_that_needs_no_gpu(tmp_path: Path) -> None:
    lines: list[str] = []
    verify(plan("cpu", tmp_path), lines.append)
    kept = result_file.load(tmp_path / "r.json")  # as `plot` reads it
    not_done = {step.name for step in kept.steps if step.reason}
    assert not_done == {"find a GPU", "train on cuda"}
    assert not has_failed(kept)
    assert len(kept.steps) == 6
    (trained,) = kept.training
    assert (trained["device"], trained["recipe"]) == ("cpu", "default, epochs: 1")
    assert kept.environment["model"]["recipe"] == "default"
    compared = Counter(str(each.spec) for each in kept.agreements)
    assert compared == {"engine-bound": 3, "engine-fp16": 3}
    assert all(each.num_images == 10_000 for each in kept.agreements)
    assert all(abs(each.accuracy - trained["accuracy"]) < 0.001 for each in kept.agreements)
    measured = {str(sample.spec) for sample in kept.samples}
    assert measured == {
        "engine", "engine int8", "engine-bound", "engine-fp16", "h2", "h2 int8", "h2-bound",
    }, kept.skips  # fmt: skip
    assert {"round 1/1", "answers of"} <= {" ".join(line.split()[:2]) for line in lines}
    assert str(tmp_path) not in (tmp_path / "r.json").read_text()


@pytest.mark.usefixtures("no_gpu")
def test_step_that_fails_is_a_line_and_the_others_still_run(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    suite = Suite(
        name="gpu", specs=specs(["engine"], ("cpu", "cuda")), scenarios=("Offline",),
        batches=(1,), rounds=1, seconds=SHORT_S,
    )  # fmt: skip
    nowhere = tmp_path / "no-mnist"
    kept = verify(replace(plan("cuda", tmp_path, nowhere), suite=suite), print)
    assert has_failed(kept)
    reasons = {step.name: step.reason for step in kept.steps}
    assert "nothing was trained" in reasons["export"]
    for name in ("train on cuda", "train on cpu", "compare answers"):
        assert str(nowhere) in reasons[name]
    assert not reasons["measure rates"]
    assert [sample.spec for sample in kept.samples] == [Spec(target="engine")]
    assert [str(skip.spec) for skip in kept.skips] == ["engine cuda"]
    lines = capfd.readouterr().err.splitlines()
    assert len([line for line in lines if line.startswith("python -m benchmarks: ")]) == 5
    found = {table.title: table.rows for table in tables(kept)}
    assert ["engine cuda", "engine", "not measured"] in found["Crossover"]
    assert any(row[2].startswith("not measured: nothing") for row in found["Verification"])


@pytest.mark.full_mnist
@pytest.mark.usefixtures("mnist", "no_gpu")
def test_training_on_another_device_is_ended(tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match="does not use cuda"):
        call(["train", "--artifacts", str(tmp_path)], 60, "cuda")


def test_training_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match=r"it has 0\.1 s"):
        call(["train", "--artifacts", str(tmp_path)], 0.1)
