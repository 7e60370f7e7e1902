"""The study, on recipes of one epoch and a sample of the images."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from training.config import RECIPES, Distillation
from training.data.mnist import Mnist
from training.fitting.train import train
from training.lab.study import experiments, final_models
from training.lab.study.corruptions import CORRUPTIONS
from training.lab.study.final_models import trained
from training.lab.study.outliers import outliers
from training.lab.study.results import Results
from training.report import report

TINY = replace(
    RECIPES["best"], distillation=None, epochs=1, batch_size=256, validation_split=1 / 12
)
SMALL = replace(TINY, name="best-small")


@pytest.fixture(autouse=True)
def tiny_study(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "write", lambda artifacts, data: None)
    monkeypatch.setattr(experiments, "RECIPES", {"best": TINY})
    monkeypatch.setattr(experiments, "SEEDS", 1)


@pytest.fixture(scope="module")
def final(tmp_path_factory: pytest.TempPathFactory, mnist_sample: Mnist) -> Path:
    """The artifacts of a study's only final model, trained elsewhere. Shared: copy it."""
    folder = tmp_path_factory.mktemp("final")
    train(TINY, mnist_sample, folder / "study" / "best-0")
    return folder


def test_study_measures_a_model_that_is_trained_already_and_resumes(
    tmp_path: Path, final: Path, mnist_sample: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt_the_teachers(*arguments: Any) -> Any:
        raise KeyboardInterrupt

    shutil.copytree(final, tmp_path, dirs_exist_ok=True)
    metrics = json.loads((tmp_path / "study" / "best-0" / "metrics.json").read_text())
    monkeypatch.setattr(final_models, "train", lambda *arguments, **options: pytest.fail("trained"))
    results = tmp_path / "results.json"
    with monkeypatch.context() as patch:
        patch.setattr(experiments, "teacher_runs", interrupt_the_teachers)
        with pytest.raises(KeyboardInterrupt):
            experiments.run(mnist_sample, tmp_path, results, lambda line: None)
    [run] = Results.load(results).runs
    assert metrics.items() <= run.items()
    assert (run["recipe"], run["seed"], run["parameters"]) == ("best", 0, 241_650)
    assert len(run["wrong"]) == run["errors"]["test"]
    assert run["corrupted"].keys() == CORRUPTIONS.keys()
    assert run["outliers"].keys() == outliers().keys()
    assert run["covered"].keys() == {"0.99", "0.98"}
    assert run["examples"] == {"training": 1_833, "validation": 167}
    found = experiments.run(mnist_sample, tmp_path, results, pytest.fail)  # all is there
    assert found.runs == [run]


def test_final_model_that_was_interrupted_is_no_result(
    tmp_path: Path, mnist_sample: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(line: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(experiments, "RECIPES", {"best": replace(TINY, epochs=2)})
    with pytest.raises(KeyboardInterrupt):
        experiments.run(mnist_sample, tmp_path, tmp_path / "results.json", interrupt)
    assert not (tmp_path / "results.json").exists()
    assert (tmp_path / "study" / "best-0" / "checkpoint.npz").exists()


def test_only_a_complete_model_of_the_same_training_is_taken(tmp_path: Path, final: Path) -> None:
    def copy(name: str) -> Path:
        return Path(shutil.copytree(final / "study" / "best-0", tmp_path / name))

    def state(folder: Path, **facts: Any) -> None:
        metrics = json.loads((folder / "metrics.json").read_text())
        (folder / "metrics.json").write_text(json.dumps(metrics | facts))

    whole = copy("whole")
    assert trained(whole, TINY, 0)
    assert not trained(whole, TINY, 1)
    assert not trained(whole, SMALL, 0)
    assert not trained(whole, replace(TINY, epochs=2), 0)
    state(whole, extra={"images": 3})  # on someone's own digits, too
    assert not trained(whole, TINY, 0)

    unfinished, damaged, without = copy("unfinished"), copy("damaged"), copy("without")
    (unfinished / "checkpoint.npz").touch()
    (damaged / "metrics.json").write_text("{")
    (without / "model.keras").unlink()
    for folder in (unfinished, damaged, without, tmp_path / "none"):
        assert trained(folder, TINY, 0) is None


def test_teachers_have_rows_of_their_own(
    tmp_path: Path, final: Path, mnist_sample: Mnist, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(final, tmp_path / "artifacts"))
    teacher = replace(RECIPES["best"].views()[1].teacher, epochs=1, batch_size=256)
    distillation = Distillation(teacher=teacher, teachers=1, views=1, temperature=1, share=1)
    distilled = replace(TINY, distillation=distillation, fine_tune_share=0)
    monkeypatch.setattr(experiments, "RECIPES", {"best": distilled})
    results = tmp_path / "results.json"
    experiments.run(mnist_sample, folder, results, lambda line: None)
    found = Results.load(results)
    assert [run["recipe"] for run in found.runs] == ["best"]
    [row] = found.teachers
    assert (row["recipe"], row["seed"]) == ("teacher", 0)
    assert row["errors"]["test"] == len(row["wrong"])
    assert row["accuracy"]["test"] == pytest.approx(1 - len(row["wrong"]) / 500)
    assert row["corrupted"].keys() == CORRUPTIONS.keys()
    assert (folder / "teachers" / "teacher-0.npz").exists()
    experiments.run(mnist_sample, folder, results, pytest.fail)  # all is there
